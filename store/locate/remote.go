package locate

// IsRemote says whether a location is reached over a network: whether it is written like a URL.
func IsRemote(location string) bool { return schemeOf(location) != "" }

// IndexName is the name of the file that an index's location ends in.
func IndexName(location string) (string, error) {
	_, name, err := split(location)
	return name, err
}
