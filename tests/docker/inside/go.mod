module lepton.test/inside

go 1.21
