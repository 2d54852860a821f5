package gcsim

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
	"time"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/store"
	"cairn/store/pack"
)

// mapSuffix ends the name of the map beside an index.
const mapSuffix = ".camap"

// packMap is a map of packs that a service holds.
type packMap struct {
	image  int
	packOf map[string]string // names of the objects by the names of the chunks
}

// mapName returns the name of the map of an image whose index has a name.
func mapName(index string, image int) string {
	return index + "." + images()[image].index.Digest().String()[:16] + mapSuffix
}

// packMaps are the maps beside the indexes.
type packMaps struct {
	beside map[string]packMap // by name
	used   map[string]packMap // that clients use; its index is visible
}

func newPackMaps() packMaps { return packMaps{map[string]packMap{}, map[string]packMap{}} }

// decodeMap decodes a map, which is of one of the images.
func decodeMap(file []byte) (p packMap) {
	for i, m := range images() {
		decoded, err := pack.DecodeMap(bytes.NewReader(file), m.index)
		if err != nil {
			continue
		}
		p = packMap{i, map[string]string{}}
		for _, d := range m.chunks {
			if at, ok := decoded.Find(d); ok {
				p.packOf[store.ObjectName(d, false)] = at.Pack.Name()
			}
		}
		return p
	}
	panic("a map of no image was written")
}

// write takes the map that is now beside an index. Clients that have read the one before go on with it for the grace.
func (p *packMaps) write(w *world, name string, file []byte) {
	p.beside[name] = decodeMap(file)
	p.use(w, indexOf(name))
}

// remove takes away the map beside an index.
func (p *packMaps) remove(w *world, name string) {
	delete(p.beside, name)
	p.use(w, indexOf(name))
}

// indexOf returns the name of the index of a map.
func indexOf(name string) string {
	index, _, _ := strings.Cut(name, ".")
	return index
}

// use lets the clients of a visible index use its map.
func (p *packMaps) use(w *world, index string) {
	image, visible := w.visible[index]
	if !visible {
		return
	}
	m := p.beside[mapName(index, image)]
	if before := p.used[index]; !maps.Equal(before.packOf, m.packOf) {
		w.windows = append(w.windows, window{image, before, time.Now().Add(w.grace)})
	}
	p.used[index] = m
	w.checkReadable(index)
}

// packName returns the name of a pack in messages. Its own one is random.
func (w *world) packName(name string) string {
	if o := w.objects[packPlace][name]; o != nil {
		return fmt.Sprintf("pack %d", o.number)
	}
	return "a pack"
}

// checkPackRemoval fails if a pack is removed that somebody may read.
func (w *world) checkPackRemoval(name string) {
	w.counts.packsRemoved++
	for record := range w.objects[recordPlace] {
		if strings.HasPrefix(record, "leases/") {
			w.counts.besidePublishers++
			break
		}
	}
	for index, image := range w.visible {
		if chunk := w.needed(image, w.maps.used[index], name); chunk != "" {
			w.fail("%s is removed, in which the visible index %s has the chunk %.8s", w.packName(name), index, chunk)
		}
	}
	for _, v := range w.windows {
		if chunk := w.needed(v.image, v.packs, name); chunk != "" && !time.Now().After(v.until) {
			w.fail("%s is removed %v before the grace of a reader of image %d ends", w.packName(name), time.Until(v.until), v.image)
		}
	}
}

// needed returns a chunk of an image that a reader with a map finds only in a pack, or "".
func (w *world) needed(image int, m packMap, pack string) string {
	for chunk := range images()[image].has {
		if m.packOf[chunk] == pack && w.objects[chunkPlace][chunk] == nil {
			return chunk
		}
	}
	return ""
}

// filling is what fillPacks writes. It is the same for all schedules, and compressing it takes longer than most of them.
type filling struct {
	objects [places]map[string]*object
	written int
	visible map[string]int
	maps    packMaps
	gone    packMap // that clients of the removed index use
}

var filled *filling

// fillPacks is fill with all chunks in packs.
func (w *world) fillPacks(a *actor) error {
	if filled == nil {
		first := newWorld(w.seed, variant{})
		first.grace, first.faults, first.skew = 0, 0, 0
		a := *a
		a.w = first
		if err := a.publishPacks(); err != nil {
			return err
		}
		filled = &filling{first.objects, first.written, first.visible, first.maps, first.windows[0].packs}
	}
	for p, all := range filled.objects {
		for name, o := range all {
			w.objects[p][name] = &object{data: o.data, modified: w.now(), number: o.number, from: a}
		}
	}
	w.written = filled.written
	w.visible, w.maps = maps.Clone(filled.visible), packMaps{maps.Clone(filled.maps.beside), maps.Clone(filled.maps.used)}
	w.windows = append(w.windows, window{2, filled.gone, time.Now().Add(w.grace)})
	return nil
}

// publishPacks publishes the images of fill, and writes a pack that no gc root has named.
func (a *actor) publishPacks() error {
	d := a.records()
	if err := d.Manage(a.ctx); err != nil {
		return err
	}
	for i, name := range []string{"stays", "goes", "gone"} {
		if err := a.tryPublish(publication{image: i, name: name, base: -1, packs: true}); err != nil {
			return err
		}
	}
	if err := a.remove(func(item release.Item, _ state) bool { return item.Name == "gone" }); err != nil {
		return err
	}
	p, err := release.NewPublisher(a.ctx, a.bucket(chunkPlace), release.PublisherOptions{
		Algorithm: blob.SHA512_256, Params: params, Records: d, Packs: a.packOptions(false),
	})
	if err != nil {
		return err
	}
	defer p.Close()
	for _, c := range images()[3].chunks {
		if _, err := p.Put(a.ctx, c, contents()[c]); err != nil {
			return err
		}
	}
	return p.Commit(a.ctx)
}

// packOptions returns how a publisher writes packs.
func (a *actor) packOptions(chunks bool) *release.PackOptions {
	return &release.PackOptions{To: a.bucket(packPlace), Size: pack.MinSize, Chunks: chunks}
}

// remember answers a publisher's second listing of the packs as its first one, if the variant does not look again.
func (a *actor) remember(r *request) bool {
	if !a.w.variant.looksOnceAtPacks || a.kind != "publisher" || a.packsSeen == nil {
		return false
	}
	r.found = a.packsSeen
	return true
}
