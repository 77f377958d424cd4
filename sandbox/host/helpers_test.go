package host

import (
	"bufio"
	"io"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func readInt(t *testing.T, r io.Reader) int {
	t.Helper()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func kill(pid int) { _ = syscall.Kill(pid, syscall.SIGKILL) }
