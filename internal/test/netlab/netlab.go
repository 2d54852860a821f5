// Package netlab has networks and servers for tests and benchmarks. Proxy is a link of a given rate and latency
// in front of any TCP server. Faulty is a web server that fails as real servers do. The package knows nothing
// of chunks and images.
package netlab
