// Figures prints counts about the code of this module, beside well-kept Go projects of the same field. A count
// is a hint and not a goal: no code is renamed, joined or cut for its sake.
//
//	go run ./internal/test/figures [-packages] [-names]
package main

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

func main() {
	packages := flag.Bool("packages", false, "print a line for each package")
	names := flag.Bool("names", false, "list the unexported functions that are named by one word, and the comments in dialect")
	flag.Parse()
	if err := run(*packages, *names); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

func run(packages, names bool) error {
	list, err := loadPackages("./...")
	if err != nil {
		return err
	}
	all, each := new(figures), map[string]*figures{}
	for _, p := range list {
		if !isProduct(p.path) {
			continue
		}
		f := new(figures)
		f.measure(p)
		all.addCounts(f)
		each[p.path] = f
	}
	if names {
		fmt.Println(strings.Join(slices.Concat(all.oneWord, all.dialect), "\n"))
		return nil
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	if packages {
		fmt.Fprintln(w, "package\tlines\ttest:code\tfunctions per 100 lines\tone-word names\tforeign fields")
		for _, path := range slices.Sorted(maps.Keys(each)) {
			f := each[path]
			fmt.Fprintf(w, "%s\t%d\t%.2f\t%.1f\t%s\t%s\n", path, f.lines, ratio(f.testCode, f.code), f.functionsPer100(),
				percent(len(f.oneWord), f.unexported), percent(f.foreign, f.fields))
		}
		return w.Flush()
	}
	fmt.Fprintln(w, "\tcairn\tdesync\tage\tgo-containerregistry\trestic\tperkeep\tgolang/mod")
	for _, row := range rows(all) {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// isProduct reports whether users run or import a package. Tools and helpers of tests are not part of the product.
func isProduct(path string) bool {
	return !strings.HasPrefix(path, "cairn/internal/test/") && path != "cairn/testimages" &&
		path != "cairn/store/storetest" && path != "cairn/nbd/nbdtest" && !strings.Contains(path, "/gen")
}

// rows returns the table: this module's figures, and those of desync ff9ccfa, age 10561a7, go-containerregistry
// 3f4ff3c (v1), restic a80be14 (backends), perkeep 9cd62b2 (blobserver) and golang/mod fe2ec04 (sumdb), counted
// the same way.
func rows(f *figures) [][]string {
	slices.Sort(f.lengths)
	at := func(share float64) int { return f.lengths[int(share*float64(len(f.lengths)-1))] }
	return [][]string{
		{"lines", fmt.Sprint(f.lines), "14087", "6875", "15273", "9602", "13991", "3228"},
		{"function lines, median/p99/max", fmt.Sprintf("%d/%d/%d", at(0.5), at(0.99), at(1)), "9/155/295", "10/117/217", "8/87/128", "7/106/130", "9/104/199", "12/105/134"},
		{"functions per 100 lines", fmt.Sprintf("%.1f", f.functionsPer100()), "3.9", "3.9", "4.3", "5.0", "3.4", "3.2"},
		{"unexported functions named by one word", percent(len(f.oneWord), f.unexported), "20 %", "29 %", "21 %", "25 %", "25 %", "11 %"},
		{"exported, documented", fmt.Sprintf("%d, %s", f.exported, percent(f.documented, f.exported)), "509, 61 %", "181, 52 %", "358, 89 %", "313, 75 %", "251, 57 %", "88, 89 %"},
		{"comment : code", percent(f.comments, f.code), "18 %", "15 %", "30 %", "15 %", "30 %", "44 %"},
		{"test : code", fmt.Sprintf("%.2f", ratio(f.testCode, f.code)), "0.55", "0.48", "1.39", "0.63", "0.49", "0.70"},
		{"lines over 100 columns", percent(f.long, f.lines), "1.2 %", "0.5 %", "1.3 %", "2.1 %", "1.8 %", "0.8 %"},
		{"comment lines with who · what is · nobody", f.dialects(), "0 · 6 · 0", "0 · 0 · 0", "0 · 1 · 0", "0 · 0 · 0", "", ""},
		{"field uses in methods that are another type's", percent(f.foreign, f.fields), "", "", "", "", "", ""},
	}
}

func percent(n, of int) string { return fmt.Sprintf("%.1f %%", 100*ratio(n, of)) }

func ratio(n, of int) float64 { return float64(n) / float64(cmp.Or(of, 1)) }
