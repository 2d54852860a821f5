package main

import "math/big"

// roundConstants returns the constants of SHA-512: the first 64 bits of the fractional parts of the cube roots of the
// first n primes. Those of SHA-256 are their first 32 bits (FIPS 180-4, 4.2).
func roundConstants(n int) []uint64 {
	var all []uint64
	for p := int64(2); len(all) < n; p++ {
		if big.NewInt(p).ProbablyPrime(0) {
			all = append(all, cubeRoot(p))
		}
	}
	return all
}

// cubeRoot returns the fractional part of the cube root of p, times 2^64, found bit by bit.
func cubeRoot(p int64) uint64 {
	want := new(big.Int).Lsh(big.NewInt(p), 3*64)
	root, cube := new(big.Int), new(big.Int)
	for bit := 64 + 3; bit >= 0; bit-- { // the 80th prime is below 2^9
		root.SetBit(root, bit, 1)
		if cube.Exp(root, big.NewInt(3), nil).Cmp(want) > 0 {
			root.SetBit(root, bit, 0)
		}
	}
	return root.And(root, new(big.Int).SetUint64(^uint64(0))).Uint64()
}
