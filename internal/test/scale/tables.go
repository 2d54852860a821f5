package main

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// tables returns the tables of the document by their names.
func tables() map[string]string {
	return map[string]string{
		"update": updateTable(), "year": yearTable(), "direct": directTable(), "storage": storageTable(),
		"peak": peakTable(), "boots": bootTable(), "prices": priceTable(), "assumptions": assumptionTable(),
		"herds": herdTable(),
	}
}

func updateTable() string {
	t := newTable("a device with", "downloads", "requests", "sent", "through the CDN", "of it for requests")
	for _, row := range []struct {
		has, by string
		download
	}{
		{"the last release", "chunks", byChunks},
		{"", "packs", byPacks},
		{"", "packs, from a server without ranges", byWholePacks},
		{"", "a delta", byDelta},
		{"nothing", "chunks", allByChunks},
		{"", "packs", allByPacks},
		{"", "packs, from a server without ranges", allByWholePacks},
	} {
		fee := row.requests * cdnRequests
		all := fee + row.sent()/giga*cdnEgress[0].price
		t.add(row.has, row.by, count(row.requests), bytes(row.sent()), fmt.Sprintf("%.2f ¢", 100*all), fmt.Sprintf("%.1f %%", 100*fee/all))
	}
	return t.String()
}

func yearTable() string {
	t := newTable("", fleetNames()...)
	for _, l := range layouts {
		row := []string{l.name}
		for _, f := range fleets {
			y := l.year(f)
			row = append(row, fmt.Sprintf("%s · %s · %s", count(y.requests), bytes(y.sent), dollars(y.cdn)))
		}
		t.add(row...)
	}
	return t.String()
}

func directTable() string {
	t := newTable("", fleetNames()...)
	for _, l := range layouts {
		row := []string{l.name}
		for _, f := range fleets {
			row = append(row, dollars(l.year(f).direct))
		}
		t.add(row...)
	}
	return t.String()
}

func fleetNames() (names []string) {
	for _, f := range fleets {
		names = append(names, f.name+" devices")
	}
	return names
}

func storageTable() string {
	t := newTable("`--keep-last`", "objects as chunks", "objects as packs", "bytes", "a year", "with deltas", "a year")
	for _, n := range []float64{1, 3, kept, releases} {
		plain, deltas := storedBytes(n, 0), storedBytes(n, min(n-1, deltasKept))
		t.add(fmt.Sprint(n), count(firstChunks+(n-1)*newChunks), count(firstPacks+(n-1)*newPacks),
			bytes(plain), dollars(storageYear(plain)), bytes(deltas), dollars(storageYear(deltas)))
	}
	return t.String()
}

func peakTable() string {
	titles := []string{"", "in an hour", "in a day", "in a week"}
	for _, s := range servers {
		titles = append(titles, s.name)
	}
	t := newTable("devices", titles...)
	for _, f := range fleets {
		for _, l := range layouts {
			row := []string{f.name, l.name}
			for _, window := range []float64{3600, 86_400, 7 * 86_400} {
				row = append(row, fmt.Sprintf("%s/s · %sbit/s", count(f.devices*l.update.requests/window), count(f.devices*l.update.sent()*8/window)))
			}
			for _, s := range servers {
				row = append(row, duration(s.shortest(f.devices*l.update.requests, f.devices*l.update.sent())))
			}
			t.add(row...)
		}
	}
	return t.String()
}

func bootTable() string {
	const machines = 1000
	t := newTable("", "a server: requests, bytes", "1,000 machines: requests, bytes", "one S3 prefix", "one nginx")
	for _, b := range boots {
		n := machines / b.machines
		t.add(b.name, count(b.requests)+" · "+bytes(b.bytes), count(n*b.requests)+" · "+bytes(n*b.bytes),
			duration(servers[0].shortest(n*b.requests, n*b.bytes)), duration(servers[1].shortest(n*b.requests, n*b.bytes)))
	}
	return t.String()
}

func priceTable() string {
	t := newTable("", "price")
	t.add("S3: GET, PUT", fmt.Sprintf("$%.2f, $%.2f a million", 1e6*s3Get, 1e6*s3Put))
	t.add("S3: storage", fmt.Sprintf("$%.3f a GB and month", s3Storage))
	t.add("S3: to the internet", tierText(s3Egress))
	t.add("CDN: HTTPS request", fmt.Sprintf("$%.2f a million", 1e6*cdnRequests))
	t.add("CDN: to the internet", tierText(cdnEgress))
	t.add("S3 to the CDN", "free, except for the GETs")
	return t.String()
}

func tierText(tiers []tier) string {
	var parts []string
	for _, t := range tiers {
		if math.IsInf(t.upTo, 1) {
			parts = append(parts, fmt.Sprintf("then $%.3f", t.price))
			continue
		}
		parts = append(parts, fmt.Sprintf("$%.3f up to %.0f TB", t.price, t.upTo/tera))
	}
	return strings.Join(parts, ", ") + " a month, for a GB"
}

func assumptionTable() string {
	t := newTable("assumed", "")
	t.add("releases a year, each of which differs from the last one as the Debian pair does", count(releases))
	t.add("devices that have one of the last three releases, and find a delta as large as that of the pair", fmt.Sprintf("%.0f %%", 100*deltaShare))
	t.add("other devices", "download as much as with the last release")
	t.add("traffic", "even over a month for prices, and over the hour, day or week for rates")
	t.add("caches of the CDN that fetch each new object once", count(caches))
	t.add("releases in the store", count(kept))
	t.add("headers of an answer, from the measured difference to the bodies", count(headerSize)+" bytes")
	for _, s := range servers {
		limits := count(s.requests) + " requests/s"
		if !math.IsInf(s.bits, 1) {
			limits += ", " + count(s.bits) + "bit/s"
		}
		t.add(s.name, limits)
	}
	return t.String()
}

// table is a table in Markdown.
type table struct{ text strings.Builder }

func newTable(first string, titles ...string) *table {
	t := new(table)
	t.add(append([]string{first}, titles...)...)
	t.text.WriteString("|" + strings.Repeat("---|", len(titles)+1) + "\n")
	return t
}

func (t *table) add(cells ...string) { fmt.Fprintf(&t.text, "| %s |\n", strings.Join(cells, " | ")) }

func (t *table) String() string { return "\n" + t.text.String() + "\n" }

// count returns a number with three digits. From 10,000 on it has the prefix of its size.
func count(n float64) string {
	if n < 9999.5 {
		return withCommas(n)
	}
	return scaled(n)
}

func bytes(n float64) string { return scaled(n) + "B" }

func dollars(n float64) string {
	switch {
	case n < 10:
		return fmt.Sprintf("$%.2f", n)
	case n < 1e6:
		unit := math.Pow(10, math.Floor(math.Log10(n))-2)
		return "$" + withCommas(math.Round(n/unit)*unit)
	}
	return fmt.Sprintf("$%s million", threeDigits(n/1e6))
}

// withCommas returns a number below a million.
func withCommas(n float64) string {
	if n < 999.5 {
		return threeDigits(n)
	}
	whole := int(n + 0.5)
	return fmt.Sprintf("%d,%03d", whole/1000, whole%1000)
}

func scaled(n float64) string {
	prefixes := []string{"", "k", "M", "G", "T", "P", "E"}
	i := 0
	for n >= 999.5 {
		n /= 1000
		i++
	}
	return threeDigits(n) + " " + prefixes[i]
}

func threeDigits(n float64) string {
	switch {
	case n >= 99.95 || n == math.Trunc(n):
		return fmt.Sprintf("%.0f", n)
	case n >= 9.995:
		return fmt.Sprintf("%.1f", n)
	}
	return fmt.Sprintf("%.2f", n)
}

// duration returns a time with two digits.
func duration(d time.Duration) string {
	n, unit := d.Seconds(), "s"
	for _, larger := range []struct {
		seconds float64
		name    string
	}{{60, "min"}, {3600, "h"}, {86_400, "days"}} {
		if d.Seconds() >= 2*larger.seconds {
			n, unit = d.Seconds()/larger.seconds, larger.name
		}
	}
	if n < 9.95 {
		return fmt.Sprintf("%.1f %s", n, unit)
	}
	return fmt.Sprintf("%.0f %s", n, unit)
}
