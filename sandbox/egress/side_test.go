package egress

import (
	"log/slog"
	"net"
	"testing"

	"hallmark.build/sandbox"
)

func TestPanicOverAClientIsItsOwnJobsFailure(t *testing.T) {
	b := &Border{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	p := newPeriod(&side{b: b, role: sandbox.Build}, sandbox.BuildScript)
	in, out := net.Pipe()
	p.admit(in, func(*period, net.Conn) { panic("bytes that nobody thought of") })
	p.work.Wait()
	if p.failure == nil {
		t.Error("the job goes on as if nothing had happened")
	}
	if _, err := out.Read(make([]byte, 1)); err == nil {
		t.Error("the client's connection stays open")
	}
	if len(p.conns) != 0 {
		t.Errorf("%d connections are counted", len(p.conns))
	}
}
