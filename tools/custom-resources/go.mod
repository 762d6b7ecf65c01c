module lepton/tools/custom-resources

go 1.25.0

require (
	github.com/kedacore/keda/v2 v2.17.2
	sigs.k8s.io/lws v0.7.0
)
