package authority_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"hallmark.build/attest/authority"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/client"
	"hallmark.build/attest/gitlab"
)

// raw is a peer that speaks HTTP/2 as it likes.
type raw struct {
	net.Conn
	framer  *http2.Framer
	decoder *hpack.Decoder
	stream  uint32
}

// connect makes a TCP connection from an address of this machine.
func (f *fleet) connect(from string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	return d.Dial("tcp", f.address)
}

// raw connects and says what an HTTP/2 client says first.
func (f *fleet) raw(ctx context.Context, from string, settings []http2.Setting, pair ...tls.Certificate) (*raw, error) {
	tcp, err := f.connect(from)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { tcp.Close() }) // also while somebody writes
	roots := x509.NewCertPool()
	roots.AddCert(f.hostCA.Cert())
	c := tls.Client(tcp, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", NextProtos: []string{"h2"}, Certificates: pair})
	r := &raw{Conn: c, framer: http2.NewFramer(c, c), decoder: hpack.NewDecoder(4096, nil), stream: 1}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		tcp.Close()
		return nil, err
	}
	if err := r.framer.WriteSettings(settings...); err != nil {
		tcp.Close()
		return nil, err
	}
	return r, nil
}

// begin begins a call, with some headers more.
func (r *raw) begin(method string, more ...hpack.HeaderField) (stream uint32, err error) {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, h := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: method},
		{Name: ":authority", Value: "attestd"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}, more...) {
		if err := enc.WriteField(h); err != nil {
			return 0, err
		}
	}
	stream = r.stream
	r.stream += 2
	block := b.Bytes()
	first := true
	for len(block) > 0 {
		part := block[:min(len(block), 16<<10)]
		block = block[len(part):]
		if first {
			err = r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: part, EndHeaders: len(block) == 0})
		} else {
			err = r.framer.WriteContinuation(stream, len(block) == 0, part)
		}
		if err != nil {
			return 0, err
		}
		first = false
	}
	return stream, nil
}

// promise says that a piece of so many bytes comes, and sends a few.
func (r *raw) promise(stream uint32, size uint32) error {
	head := make([]byte, 5+1024)
	binary.BigEndian.PutUint32(head[1:], size)
	return r.framer.WriteData(stream, false, head)
}

// ask makes a whole call.
func (r *raw) ask(method string, req proto.Message) (stream uint32, err error) {
	if stream, err = r.begin(method); err != nil {
		return 0, err
	}
	body, err := proto.Marshal(req)
	if err != nil {
		return 0, err
	}
	head := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body)))
	return stream, r.framer.WriteData(stream, true, append(head, body...))
}

// handled waits until the other side has handled what was sent so far.
func (r *raw) handled() error {
	if err := r.framer.WritePing(false, [8]byte{}); err != nil {
		return err
	}
	for {
		frame, err := r.framer.ReadFrame()
		if err != nil {
			return err
		}
		if ping, ok := frame.(*http2.PingFrame); ok && ping.IsAck() {
			return nil
		}
	}
}

// ended waits until the other side has ended a call, and says with which code.
func (r *raw) ended() (code string, err error) {
	for {
		frame, err := r.framer.ReadFrame()
		if err != nil {
			return "", err
		}
		headers, ok := frame.(*http2.HeadersFrame)
		if !ok {
			continue
		}
		fields, err := r.decoder.DecodeFull(headers.HeaderBlockFragment())
		if err != nil {
			return "", err
		}
		for _, f := range fields {
			if f.Name == "grpc-status" {
				return f.Value, nil
			}
		}
	}
}

// gone reads until the other side has closed, or says that it has not in time.
func gone(c net.Conn) error {
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, err := io.Copy(io.Discard, c)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return errors.New("the connection is still there")
	}
	return nil
}

const (
	appendMethod = authoritypb.Authority_Append_FullMethodName
	openMethod   = authoritypb.Authority_Open_FullMethodName
	closeMethod  = authoritypb.Authority_Close_FullMethodName
)

// TestHalfOpen holds that connections which never speak keep nobody out, not even
// from the same address.
func TestHalfOpen(t *testing.T) {
	f := newFleet(t)
	h := f.join("runner-1")
	var all []net.Conn
	for i := range 600 {
		c, err := f.connect(fmt.Sprintf("127.0.0.%d", 1+i%2))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 {
			_, _ = c.Write([]byte{0x16, 0x03, 0x01, 0x02}) // a ClientHello begins
		}
		all = append(all, c)
	}
	if _, err := f.attest(t.Context(), h, 4242); err != nil {
		t.Error(err)
	}
	if err := gone(all[0]); err != nil {
		t.Error(err)
	}
}

// TestStrangers holds that who has no certificate can say little, and not for long.
func TestStrangers(t *testing.T) {
	f := newFleet(t)
	r, err := f.raw(t.Context(), "127.0.0.1", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stream, err := r.begin(authoritypb.Enrolment_Join_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.promise(stream, 8<<20); err != nil {
		t.Fatal(err)
	}
	for range 80 {
		if err := r.framer.WriteData(stream, false, make([]byte, 1<<10)); err != nil {
			break // cut off already
		}
	}
	if err := gone(r); err != nil {
		t.Error(err)
	}
	// Many of them do not keep a host from joining.
	for range 100 {
		r, err := f.raw(t.Context(), "127.0.0.1", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
	}
	f.works(f.join("runner-1"))
}

// TestSlowWriters holds that calls whose requests do not come are counted against
// their host alone, over all its connections, and that it is told.
func TestSlowWriters(t *testing.T) {
	f := newFleet(t, func(l *authority.Limits) { l.Calls = 6 })
	slow, other := f.join("runner-1"), f.join("runner-2")
	pair := slow.keyPair(t)
	r, err := f.raw(t.Context(), "127.0.0.1", nil, pair)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 7 {
		stream, err := r.begin(appendMethod)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.promise(stream, authority.MaxPiece); err != nil {
			t.Fatal(err)
		}
	}
	// Whichever comes last of seven is refused: from then on six are in flight, and
	// none of them ends. A call made before could take the place of one of them.
	if code, err := r.ended(); err != nil || code != strconv.Itoa(int(codes.ResourceExhausted)) {
		t.Fatalf("ended with code %q, %v", code, err)
	}
	_, err = f.with(pair).Append(t.Context(), &authoritypb.AppendRequest{Attempt: strings.Repeat("0", 32)})
	wantLimit(t, err, "CALLS_IN_FLIGHT", true, "6 calls of this host are in flight, as many as it may have")
	if n := f.counted(authority.EventLimit); n != 2 {
		t.Errorf("%d refusals were counted, want 2", n)
	}
	if _, err := f.attest(t.Context(), other, 4242); err != nil {
		t.Error(err)
	}
	r.Close()
	if _, err := f.attest(t.Context(), slow, 4243); err != nil {
		t.Errorf("the host does not recover: %v", err)
	}
}

// TestSlowReaders holds that calls whose answers are not read stay counted against
// their host, until they are read or their connection ends.
func TestSlowReaders(t *testing.T) {
	f := newFleet(t, func(l *authority.Limits) { l.Calls = 6 })
	slow, other := f.join("runner-1"), f.join("runner-2")
	pair := slow.keyPair(t)
	closing, err := f.record(t.Context(), slow, 4242)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Close(t.Context(), closing); err != nil {
		t.Fatal(err)
	}
	r, err := f.raw(t.Context(), "127.0.0.1", []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}, pair)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 7 {
		if _, err := r.ask(closeMethod, closing); err != nil {
			t.Fatal(err)
		}
	}
	if code, err := r.ended(); err != nil || code != strconv.Itoa(int(codes.ResourceExhausted)) {
		t.Fatalf("ended with code %q, %v", code, err)
	}
	stub := f.with(pair)
	_, err = stub.Close(t.Context(), closing)
	wantLimit(t, err, "CALLS_IN_FLIGHT", true, "6 calls of this host are in flight")
	if _, err := f.attest(t.Context(), other, 4243); err != nil {
		t.Error(err)
	}
	// What is read makes room again.
	if err := r.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := r.framer.WriteWindowUpdate(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		if code, err := r.ended(); err != nil || code != "0" {
			t.Fatalf("ended with code %q, %v", code, err)
		}
	}
	if _, err := f.attest(t.Context(), slow, 4244); err != nil {
		t.Errorf("the host does not recover: %v", err)
	}
}

// TestTakenBack holds that a call which its host takes back stays counted for as
// long as it is worked on.
func TestTakenBack(t *testing.T) {
	f := newFleet(t, func(l *authority.Limits) { l.Calls = 2 })
	h := f.join("runner-1")
	pair := h.keyPair(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	f.gitlab.set(func(g *fakeGitLab) {
		g.during = func() { arrived <- struct{}{}; <-release }
	})
	r, err := f.raw(t.Context(), "127.0.0.1", nil, pair)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for job := range int64(2) {
		stream, err := r.ask(openMethod, requestFor(job+1))
		if err != nil {
			t.Fatal(err)
		}
		<-arrived
		if err := r.framer.WriteRSTStream(stream, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.handled(); err != nil {
		t.Fatal(err)
	}
	_, err = f.with(pair).Open(t.Context(), requestFor(3))
	wantLimit(t, err, "CALLS_IN_FLIGHT", true, "2 calls of this host are in flight")
	f.gitlab.set(func(g *fakeGitLab) { g.during = nil })
	close(release)
	if _, err := f.attest(t.Context(), h, 4242); err != nil {
		t.Errorf("the host does not recover: %v", err)
	}
}

// TestUnfinishedHeaders holds that calls whose headers do not end take nothing of
// anybody, and that a connection on which they go on is cut off.
func TestUnfinishedHeaders(t *testing.T) {
	f := newFleet(t, func(l *authority.Limits) { l.Calls = 1 })
	h := f.join("runner-1")
	pair := h.keyPair(t)
	for range authority.MaxConnectionsOfHost {
		r, err := f.raw(t.Context(), "127.0.0.1", nil, pair)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x83}}); err != nil { // :method POST
			t.Fatal(err)
		}
	}
	if _, err := f.attest(t.Context(), h, 4242); err != nil {
		t.Error(err)
	}
	r, err := f.raw(t.Context(), "127.0.0.1", nil, pair)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, _ = r.begin(appendMethod, hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 1<<20)}) // cut off, perhaps, while it writes
	if err := gone(r); err != nil {
		t.Error(err)
	}
}

// wantLimit checks what a host is told about a limit: which, and whether to ask again.
func wantLimit(t testing.TB, err error, reason string, passes bool, message string) {
	t.Helper()
	wantCode(t, err, codes.ResourceExhausted)
	if !strings.Contains(client.Message(err), message) || !strings.Contains(fmt.Sprint(status.Convert(err).Details()), reason) {
		t.Errorf("%v, %v", err, status.Convert(err).Details())
	}
	if _, retry := client.RetryAfter(err); retry != passes || client.IsTemporary(err) != passes || client.IsSecurity(err) {
		t.Errorf("%v: passes: %v", err, retry)
	}
}

func TestOpensPerMinute(t *testing.T) {
	f := newFleet(t, func(l *authority.Limits) { l.OpensPerMinute = 20 })
	flood, other := f.join("runner-1"), f.join("runner-2")
	f.frozen.Store(time.Now().UnixNano()) // while a slow machine works, no turns come back
	stub := f.with(flood.keyPair(t))
	for job := range int64(2) {
		if _, err := stub.Open(t.Context(), requestFor(job+1)); err != nil {
			t.Fatal(err)
		}
	}
	asked := len(f.gitlab.asked)
	_, err := stub.Open(t.Context(), requestFor(3))
	wantLimit(t, err, "OPENS_PER_MINUTE", true, "this host may open 20 attempts a minute")
	if len(f.gitlab.asked) != asked {
		t.Error("GitLab was asked")
	}
	f.works(other)
	wait, _ := client.RetryAfter(err)
	f.later.Store(int64(wait))
	if _, err := stub.Open(t.Context(), requestFor(3)); err != nil {
		t.Errorf("after the wait: %v", err)
	}
}

func TestOpenAttempts(t *testing.T) {
	f := newFleet(t, func(l *authority.Limits) { l.OpenAttempts = 2 })
	h, other := f.join("runner-1"), f.join("runner-2")
	stub := f.with(h.keyPair(t))
	if _, err := f.attest(t.Context(), stub, 1); err != nil {
		t.Fatal(err)
	}
	var first *authoritypb.OpenResponse
	for job := range int64(2) {
		res, err := stub.Open(t.Context(), requestFor(job+2))
		if err != nil {
			t.Fatal(err)
		}
		first = res
	}
	_, err := stub.Open(t.Context(), requestFor(4))
	wantLimit(t, err, "OPEN_ATTEMPTS", true, "this host has 2 open attempts, as many as it may")
	if _, err := f.attest(t.Context(), other, 5); err != nil {
		t.Error(err)
	}
	// They are counted after a restart too, when the daemon tidies.
	if err := f.a.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = stub.Open(t.Context(), requestFor(4))
	wantLimit(t, err, "OPEN_ATTEMPTS", true, "2 open attempts")
	// One that ends makes room for another.
	_, err = stub.Append(t.Context(), &authoritypb.AppendRequest{Attempt: first.GetAttempt(), Lines: f.recordOf(first, 3)[3:4]})
	wantCode(t, err, codes.PermissionDenied)
	if _, err := stub.Open(t.Context(), requestFor(4)); err != nil {
		t.Error(err)
	}
}

// TestLimitsThatStay holds that what will not pass is not said to pass.
func TestLimitsThatStay(t *testing.T) {
	f := newFleet(t)
	h := f.join("runner-1")
	f.a.SetMaxRecord(4096)
	res, err := h.Open(t.Context(), openRequest())
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.Append(t.Context(), &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: f.recordOf(res, 4242)})
	wantLimit(t, err, "RECORD_SIZE", false, "record of more than 4096 bytes")
	_, err = h.Append(t.Context(), &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: [][]byte{make([]byte, authority.MaxMessage)}})
	wantCode(t, err, codes.ResourceExhausted)
	if client.IsTemporary(err) {
		t.Errorf("too large a message is said to pass: %v", err)
	}
	_, err = h.Append(t.Context(), &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: make([][]byte, 1<<20)})
	wantLimit(t, err, "FIELDS_OF_MESSAGE", false, "a message of more than 65536 fields")
	for range authority.MaxAttempts - 1 {
		f.works(h)
	}
	_, err = h.Open(t.Context(), openRequest())
	wantLimit(t, err, "ATTEMPTS_OF_JOB", false, "more than 16 attempts")
}

// TestLongQuotes holds that no refusal is as long as what it quotes: neither what is
// kept of it, nor the answer, which waits until its host reads it.
func TestLongQuotes(t *testing.T) {
	f := newFleet(t)
	h := f.join("runner-1")
	long, none := strings.Repeat("\u00e9", 1<<16), strings.Repeat("0", 64)
	job := int64(4242)
	for name, tt := range map[string]struct {
		line string
		want codes.Code
	}{
		"no entry":  {`{"` + long + `":1}`, codes.InvalidArgument},
		"its time":  {`{"seq":0,"time":"` + long + `","kind":"job_opened","prev":"` + none + `","data":{}}`, codes.PermissionDenied},
		"its kind":  {`{"seq":0,"time":"2026-11-22T10:00:00.000000Z","kind":"` + long + `","prev":"` + none + `","data":{}}`, codes.PermissionDenied},
		"its data":  {`{"seq":0,"time":"2026-11-22T10:00:00.000000Z","kind":"job_opened","prev":"` + none + `","data":{"` + long + `":1}}`, codes.PermissionDenied},
		"the other": {`{"seq":1,"` + long + `":1}`, codes.PermissionDenied},
	} {
		job++
		res, err := h.Open(t.Context(), requestFor(job))
		if err != nil {
			t.Fatal(err)
		}
		f.log.b.Reset()
		_, err = h.Append(t.Context(), &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: [][]byte{[]byte(tt.line)}})
		if wantCode(t, err, tt.want); len(client.Message(err)) < 100 || len(client.Message(err)) > 2<<10 {
			t.Errorf("%s: %d bytes of words", name, len(client.Message(err)))
		}
		at, err := f.store.Attempt(t.Context(), res.GetAttempt())
		if err != nil || len(at.Reason) > 2<<10 || len(f.log.String()) > 64<<10 {
			t.Errorf("%s: %d bytes are kept, %d logged, %v", name, len(at.Reason), len(f.log.String()), err)
		}
	}
}

// TestPatience holds that a limit which passes is waited for by the client
// itself.
func TestPatience(t *testing.T) {
	f := newFleet(t, func(l *authority.Limits) { l.OpensPerMinute = 100 })
	h := f.join("runner-1")
	f.frozen.Store(time.Now().UnixNano())
	for job := range int64(10) {
		if _, err := h.Open(t.Context(), requestFor(job+1)); err != nil {
			t.Fatalf("job %d: %v", job, err)
		}
	}
	done := make(chan error)
	go func() {
		_, err := h.Open(t.Context(), requestFor(11))
		done <- err
	}()
	f.settles(fmt.Sprintf("hallmark_refusals_total{event=%q} 1", authority.EventLimit))
	f.later.Store(int64(time.Minute))
	if err := <-done; err != nil {
		t.Errorf("%v", err)
	}
}

func TestHugeHeaders(t *testing.T) {
	f := newFleet(t)
	h := f.join("runner-1")
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("x", 64<<10))
	if _, err := h.Open(ctx, openRequest()); err == nil {
		t.Error("64 KiB of headers: accepted")
	}
	f.works(h)
}

// TestConnectionsOfHost holds that a host has few connections, its newest.
func TestConnectionsOfHost(t *testing.T) {
	f := newFleet(t)
	pair := f.join("runner-1").keyPair(t)
	var first *raw
	for i := range 20 {
		r, err := f.raw(t.Context(), "127.0.0.1", nil, pair)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if i == 0 {
			first = r
		}
	}
	if err := gone(first); err != nil {
		t.Error(err)
	}
	if _, err := f.with(pair).Open(t.Context(), openRequest()); err != nil {
		t.Error(err)
	}
}

// TestHostileHosts has 63 hosts do all that they can think of, from addresses of their
// own, while the 64th opens, appends and closes. It passes when that one is done.
func TestHostileHosts(t *testing.T) {
	f := newFleet(t, func(l *authority.Limits) { l.OpensPerMinute, l.OpenAttempts, l.Calls = 600, 16, 8 })
	good := f.join("good")
	pairs := make([]tls.Certificate, 63)
	for i := range pairs {
		pairs[i] = f.join(fmt.Sprintf("bad-%d", i)).keyPair(t)
	}
	f.gitlab.set(func(g *fakeGitLab) {
		g.bad = map[string]error{"stolen": &gitlab.Disagreement{Field: "id", Host: "1", Have: "2"}}
	})
	ctx, stop := context.WithCancel(t.Context())
	var hostile sync.WaitGroup
	for i, pair := range pairs {
		hostile.Go(func() { f.attack(ctx, i, fmt.Sprintf("127.0.1.%d", i+1), pair) })
	}
	for job := range int64(3) {
		out, err := f.attest(t.Context(), persistent{good}, 1000+job)
		if err != nil || len(out.GetAttestations()) != 1 {
			t.Errorf("job %d: %v, %v", job, out, err)
		}
	}
	stop()
	hostile.Wait()
	for _, what := range []string{"incoming_bytes", "running_calls", "opening_calls", "record_bytes"} {
		f.settles(fmt.Sprintf(`hallmark_in_use{what=%q} 0`, what))
		f.settles(fmt.Sprintf(`hallmark_waiting{what=%q} 0`, what))
	}
}

// persistent asks again when the connection was cut, as a host does, for a while.
type persistent struct{ authoritypb.AuthorityClient }

const patience = 5 * time.Minute

func ask[Req, Res any](ctx context.Context, call func(context.Context, Req, ...grpc.CallOption) (Res, error), req Req, opts []grpc.CallOption) (Res, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if res, err := call(ctx, req, opts...); !client.IsTemporary(err) || ctx.Err() != nil {
			return res, err
		}
	}
}

func (p persistent) Open(ctx context.Context, req *authoritypb.OpenRequest, opts ...grpc.CallOption) (*authoritypb.OpenResponse, error) {
	return ask(ctx, p.AuthorityClient.Open, req, opts)
}

func (p persistent) Append(ctx context.Context, req *authoritypb.AppendRequest, opts ...grpc.CallOption) (*authoritypb.AppendResponse, error) {
	return ask(ctx, p.AuthorityClient.Append, req, opts)
}

func (p persistent) Close(ctx context.Context, req *authoritypb.CloseRequest, opts ...grpc.CallOption) (*authoritypb.CloseResponse, error) {
	return ask(ctx, p.AuthorityClient.Close, req, opts)
}

// settles waits until a metric has a value.
func (f *fleet) settles(line string) {
	f.t.Helper()
	text := ""
	for range 6000 {
		if text = f.get("/metrics").Body.String(); strings.Contains(text, line+"\n") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	f.t.Errorf("%s: not within a minute in\n%s", line, text)
}

// attack does one thing after another until ctx ends, as a host that has joined.
func (f *fleet) attack(ctx context.Context, n int, from string, pair tls.Certificate) {
	attacks := []func(ctx context.Context, from string, pair tls.Certificate){
		f.attackHalfOpen, f.attackIdle, f.attackStreams, f.attackSlowWrites, f.attackSlowReads,
		f.attackHeaders, f.attackTokens, f.attackRubbish, f.attackLines, f.attackResets, f.attackEmptyLines,
	}
	for ; ctx.Err() == nil; n++ {
		round, end := context.WithTimeout(ctx, 2*time.Second)
		attacks[n%len(attacks)](round, from, pair)
		end()
	}
}

// attackHalfOpen holds connections that never say who they are.
func (f *fleet) attackHalfOpen(ctx context.Context, from string, _ tls.Certificate) {
	for range 50 {
		if c, err := f.connect(from); err == nil {
			defer c.Close()
		}
	}
	<-ctx.Done()
}

// attackIdle holds connections that do nothing.
func (f *fleet) attackIdle(ctx context.Context, from string, pair tls.Certificate) {
	for range 8 {
		if r, err := f.raw(ctx, from, nil, pair); err == nil {
			defer r.Close()
		}
	}
	<-ctx.Done()
}

// attackStreams begins calls and leaves them.
func (f *fleet) attackStreams(ctx context.Context, from string, pair tls.Certificate) {
	r, err := f.raw(ctx, from, nil, pair)
	if err != nil {
		return
	}
	defer r.Close()
	for range 500 {
		if _, err := r.begin(appendMethod); err != nil {
			return
		}
	}
	<-ctx.Done()
}

// attackSlowWrites promises large messages that do not come.
func (f *fleet) attackSlowWrites(ctx context.Context, from string, pair tls.Certificate) {
	r, err := f.raw(ctx, from, nil, pair)
	if err != nil {
		return
	}
	defer r.Close()
	for range 60 {
		stream, err := r.begin(appendMethod)
		if err != nil || r.promise(stream, authority.MaxPiece) != nil {
			return
		}
	}
	<-ctx.Done()
}

// attackSlowReads asks, and does not let the answers come.
func (f *fleet) attackSlowReads(ctx context.Context, from string, pair tls.Certificate) {
	r, err := f.raw(ctx, from, []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}, pair)
	if err != nil {
		return
	}
	defer r.Close()
	for range 60 {
		stream, err := r.begin(appendMethod)
		if err != nil || r.framer.WriteData(stream, true, []byte{0, 0, 0, 0, 0}) != nil {
			return
		}
	}
	<-ctx.Done()
}

// attackHeaders sends more headers than anybody needs.
func (f *fleet) attackHeaders(ctx context.Context, from string, pair tls.Certificate) {
	for ctx.Err() == nil {
		r, err := f.raw(ctx, from, nil, pair)
		if err != nil {
			return
		}
		for range 5 {
			if _, err := r.begin(appendMethod, hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 100<<10)}); err != nil {
				break
			}
		}
		r.Close()
		pause(ctx)
	}
}

// attackTokens has GitLab asked about tokens that are not its.
func (f *fleet) attackTokens(ctx context.Context, _ string, pair tls.Certificate) {
	stub := f.with(pair)
	for job := int64(1); ctx.Err() == nil; job++ {
		req := requestFor(job)
		req.JobToken = "stolen"
		_, _ = stub.Open(ctx, req)
		pause(ctx)
	}
}

// attackRubbish speaks no HTTP/2.
func (f *fleet) attackRubbish(ctx context.Context, from string, pair tls.Certificate) {
	for ctx.Err() == nil {
		r, err := f.raw(ctx, from, nil, pair)
		if err != nil {
			return
		}
		_, _ = r.Write(bytes.Repeat([]byte{0xff}, 64<<10))
		r.Close()
		pause(ctx)
	}
}

// attackLines opens an attempt of its own and appends whatever it likes.
func (f *fleet) attackLines(ctx context.Context, _ string, pair tls.Certificate) {
	stub := f.with(pair)
	res, err := stub.Open(ctx, requestFor(int64(binary.BigEndian.Uint32(pair.Certificate[0][20:])>>4)+1))
	if err != nil {
		return
	}
	for ctx.Err() == nil {
		_, _ = stub.Append(ctx, &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: [][]byte{bytes.Repeat([]byte("x"), 1<<20)}})
		pause(ctx)
	}
}

// attackResets begins calls and takes them back, as fast as it can.
func (f *fleet) attackResets(ctx context.Context, from string, pair tls.Certificate) {
	r, err := f.raw(ctx, from, nil, pair)
	if err != nil {
		return
	}
	defer r.Close()
	for ctx.Err() == nil {
		for range 50 {
			stream, err := r.begin(appendMethod)
			if err != nil || r.framer.WriteRSTStream(stream, http2.ErrCodeCancel) != nil || r.framer.WritePing(false, [8]byte{}) != nil {
				return
			}
		}
		pause(ctx)
	}
}

// attackEmptyLines sends messages that are far larger in memory than on the wire.
func (f *fleet) attackEmptyLines(ctx context.Context, _ string, pair tls.Certificate) {
	stub := f.with(pair)
	for ctx.Err() == nil {
		_, _ = stub.Append(ctx, &authoritypb.AppendRequest{Attempt: strings.Repeat("0", 32), Lines: make([][]byte, 1<<20)})
		pause(ctx)
	}
}

// pause leaves the processor, which the attackers of this test share with what
// they attack, to others.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(100 * time.Millisecond):
	}
}
