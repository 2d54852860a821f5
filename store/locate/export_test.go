package locate

// Secret returns the location with its secrets.
func Secret(l Location) string { return l.at.secret() }
