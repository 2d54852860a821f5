package locate

// IndexName is the name of the file that an index's location ends in.
func IndexName(location string) (string, error) {
	_, name, err := split(location)
	return name, err
}
