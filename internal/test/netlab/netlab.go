// Package netlab is networks and servers to test against: Proxy is a link of some speed and latency before any TCP
// server, and Faulty is a web server that fails as real ones do. It knows nothing of chunks and images, and nothing
// but tests and benchmarks may import it.
package netlab
