module lepton.test/oipserver

go 1.24
