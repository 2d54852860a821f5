package locate

// Secret is the whole location.
func Secret(l Location) string { return l.at.secret() }
