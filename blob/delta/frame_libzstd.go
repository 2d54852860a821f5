//go:build libzstd

package delta

/*
#include <stddef.h>

// The package github.com/DataDog/zstd links libzstd, but has no function for a prefix. These declarations are of
// libzstd's stable interface. They are weak, because cgo first links this package alone.
#define WEAK __attribute__((weak))
typedef struct ZSTD_CCtx_s ZSTD_CCtx;
WEAK ZSTD_CCtx *ZSTD_createCCtx(void);
WEAK size_t ZSTD_freeCCtx(ZSTD_CCtx *);
WEAK size_t ZSTD_CCtx_setParameter(ZSTD_CCtx *, int, int);
WEAK size_t ZSTD_CCtx_refPrefix(ZSTD_CCtx *, const void *, size_t);
WEAK size_t ZSTD_compress2(ZSTD_CCtx *, void *, size_t, const void *, size_t);
WEAK size_t ZSTD_compressBound(size_t);
WEAK unsigned ZSTD_isError(size_t);
WEAK const char *ZSTD_getErrorName(size_t);

enum { compressionLevel = 100, windowLog = 101 }; // of ZSTD_cParameter

static size_t compress(ZSTD_CCtx *c, int level, int window, const void *ref, size_t refSize,
                       void *dst, size_t dstSize, const void *src, size_t srcSize) {
	size_t r = ZSTD_CCtx_setParameter(c, compressionLevel, level);
	if (!ZSTD_isError(r)) r = ZSTD_CCtx_setParameter(c, windowLog, window);
	if (!ZSTD_isError(r)) r = ZSTD_CCtx_refPrefix(c, ref, refSize); // of the next frame only
	if (!ZSTD_isError(r)) r = ZSTD_compress2(c, dst, dstSize, src, srcSize);
	return r;
}
*/
import "C"

import (
	"errors"
	"math/bits"
	"runtime"
	"slices"
	"unsafe"

	_ "github.com/DataDog/zstd" // links libzstd
)

// frameLevel is the level that parses for the smallest output. Higher ones have larger windows, and take more memory.
const frameLevel = 19

// frameEncoder encodes chunks as payloads of kind Frame, with libzstd. It keeps its tables for the next chunk. It is
// not safe for concurrent use. The same chunk and reference give the same payload.
type frameEncoder struct{ c *C.ZSTD_CCtx }

func newFrameEncoder() (*frameEncoder, error) {
	e := &frameEncoder{C.ZSTD_createCCtx()}
	if e.c == nil {
		return nil, errors.New("libzstd has no memory for an encoder")
	}
	runtime.AddCleanup(e, func(c *C.ZSTD_CCtx) { C.ZSTD_freeCCtx(c) }, e.c)
	return e, nil
}

// encode appends the payload of a chunk to dst. The window spans reference and chunk.
func (e *frameEncoder) encode(dst, reference, chunk []byte) ([]byte, error) {
	bound := int(C.ZSTD_compressBound(C.size_t(len(chunk))))
	dst = slices.Grow(dst, bound)
	out := dst[len(dst) : len(dst)+bound]
	window := max(10, bits.Len(uint(len(reference)+len(chunk))))
	n := C.compress(e.c, frameLevel, C.int(window), unsafe.Pointer(unsafe.SliceData(reference)), C.size_t(len(reference)),
		unsafe.Pointer(unsafe.SliceData(out)), C.size_t(bound), unsafe.Pointer(unsafe.SliceData(chunk)), C.size_t(len(chunk)))
	runtime.KeepAlive(e)
	if C.ZSTD_isError(n) != 0 {
		return nil, errors.New("libzstd: " + C.GoString(C.ZSTD_getErrorName(n)))
	}
	return dst[:len(dst)+int(n)], nil
}
