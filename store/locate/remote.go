package locate

// IsRemote says whether a location is reached over a network: whether it is written like a URL.
func IsRemote(location string) bool { return schemeOf(location) != "" }
