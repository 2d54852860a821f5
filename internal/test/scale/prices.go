package main

import "math"

// The list prices in US dollars, without free tiers, as published for the region us-east-1 and for edge locations in
// North America and Europe: https://aws.amazon.com/s3/pricing/ and https://aws.amazon.com/cloudfront/pricing/.
const pricesOf = "2026-11-30"

const (
	s3Get       = 0.40 / 1e6 // a GET
	s3Put       = 5.00 / 1e6 // a PUT
	s3Storage   = 0.023      // a GB and month, the first 50 TB
	cdnRequests = 1.00 / 1e6 // an HTTPS request
)

// tier is a price for the bytes of a month, up to a sum.
type tier struct {
	upTo  float64 // bytes
	price float64 // of a GB
}

var (
	s3Egress  = []tier{{10 * tera, 0.09}, {50 * tera, 0.085}, {150 * tera, 0.07}, {math.Inf(1), 0.05}}
	cdnEgress = []tier{{10 * tera, 0.085}, {50 * tera, 0.08}, {150 * tera, 0.06}, {500 * tera, 0.04},
		{1024 * tera, 0.03}, {5120 * tera, 0.025}, {math.Inf(1), 0.02}}
)

// egressPrice returns the price of the bytes of a month.
func egressPrice(tiers []tier, bytes float64) (price float64) {
	from := 0.0
	for _, t := range tiers {
		if bytes <= from {
			break
		}
		price += (min(bytes, t.upTo) - from) / giga * t.price
		from = t.upTo
	}
	return price
}

// server is a limit of a service for what it sends.
type server struct {
	name     string
	requests float64 // a second
	bits     float64 // a second
}

var servers = []server{
	// https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html
	{"one S3 prefix", 5500, math.Inf(1)},
	// https://www.nginx.com/blog/testing-the-performance-of-nginx-and-nginx-plus-web-servers/: HTTPS, 10 KB, 8 cores. With
	// 100 KB it sends 31 Gbit/s. The network is assumed.
	{"one nginx", 198_818, 10 * giga},
	// https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/cloudfront-limits.html
	{"one CDN distribution", 250_000, 150 * giga},
}
