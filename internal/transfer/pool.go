package transfer

import "sync"

// Pool keeps the transports of a process, so that all buckets on a server share its connections. A nil Pool keeps none.
type Pool struct {
	mu   sync.Mutex // guards kept
	kept map[any]any
}

// Shared returns what make returned for an equal key before. key says all that make depends on; keys of different packages
// have different types.
func Shared[T any](p *Pool, key any, make func() T) T {
	if p == nil {
		return make()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if made, ok := p.kept[key]; ok {
		return made.(T)
	}
	if p.kept == nil {
		p.kept = map[any]any{}
	}
	made := make()
	p.kept[key] = made
	return made
}
