// Command probe runs inside a job and tries to get out.
//
//	probe net CANARY4 CANARY6 NAME   every way onto a network that it knows
//	probe http METHOD URL [K=V...]   one request, straight at the address
//	probe tamper FILE                a detached process that keeps changing FILE
//	probe host                       the host's processes, files and namespaces
//	probe leave MARK                 a mark wherever something may outlive the job
//	probe offer MARK                 the same, and serves it to other jobs
//	probe seek MARK [HOST...]        another job's mark, in every place of the two above
//	probe clock                      other times
//	probe upload API JOB TOKEN FILE  crafted archives of FILE, sent as the runner would
//
// It says what came of each try in one line: "NAME: VERDICT: detail". A verdict
// of ESCAPE means that something was reached or done which a job must not reach
// or do. What a canary on the other side saw is the better witness: the tests
// ask it too.
package main

import (
	"fmt"
	"os"
)

// Verdicts of a try.
const (
	escape  = "ESCAPE"  // it worked
	refused = "refused" // an error, or an answer that is not the canary's
	open    = "open"    // a connection that nothing came through
)

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	switch args := os.Args[2:]; os.Args[1] {
	case "net":
		if len(args) != 3 {
			usage()
		}
		probeNet(args[0], args[1], args[2])
	case "http":
		if len(args) < 2 {
			usage()
		}
		probeHTTP(args[0], args[1], args[2:])
	case "tamper":
		if len(args) != 1 {
			usage()
		}
		tamper(args[0])
	case "tamper-loop":
		tamperLoop(args[0])
	case "host":
		probeHost()
	case "leave", "offer", "seek":
		if len(args) < 1 {
			usage()
		}
		map[string]func(){"leave": func() { leave(args[0]) }, "offer": func() { offer(args[0]) }, "seek": func() { seek(args[0], args[1:]) }}[os.Args[1]]()
	case "clock":
		turnClock()
	case "upload":
		if len(args) != 4 {
			usage()
		}
		upload(args[0], args[1], args[2], args[3])
	default:
		usage()
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: probe net CANARY4 CANARY6 NAME | http METHOD URL [KEY=VALUE...] | tamper FILE | host | leave MARK | offer MARK | seek MARK [HOST...] | clock | upload API JOB TOKEN FILE")
	os.Exit(2)
}

func say(name, verdict, format string, args ...any) {
	fmt.Printf("%s: %s: %s\n", name, verdict, fmt.Sprintf(format, args...))
}

// sayErr reports a try whose success alone would be an escape.
func sayErr(name string, err error) {
	if err != nil {
		say(name, refused, "%v", err)
		return
	}
	say(name, escape, "it worked")
}
