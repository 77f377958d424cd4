// Command wordcount counts the words of its input.
package main

import (
	"flag"
	"fmt"
	"os"

	"example.test/wordcount"
)

var version = "devel"

func main() {
	show := flag.Bool("version", false, "print the version")
	flag.Parse()
	if *show {
		fmt.Println("wordcount", version)
		return
	}
	n, err := wordcount.Count(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(n)
}
