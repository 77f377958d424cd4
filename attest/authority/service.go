package authority

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// A Caller is who makes a call, once that is proved.
type Caller struct {
	Host     string   // empty: a process on this machine, which may attest everything
	Projects []string // globs of what an enrolled host may attest
	Profiles []string

	key string // hash of an enrolled host's key
}

type callerKey struct{}

func withCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf is who makes the call. Only code of this process makes one that no
// server has put a caller to.
func callerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// A service is the calls that one server answers.
type service struct {
	a *Authority
	// peer is what calls are counted under before their caller is proved.
	peer func(ctx context.Context) string
	// identify proves who makes the call and that they may make it.
	identify func(ctx context.Context, method string) (Caller, error)
}

// bounded makes each method of a service one that is handed its request
// unread, and takes it in one or more pieces: an ordinary call has one. Left to
// itself, gRPC reads a request whole before anybody is asked whether there is room
// for it, and keeps it as the peer has cut it.
func (s *service) bounded(desc grpc.ServiceDesc) *grpc.ServiceDesc {
	for _, m := range desc.Methods {
		method := "/" + desc.ServiceName + "/" + m.MethodName
		desc.Streams = append(desc.Streams, grpc.StreamDesc{
			StreamName:    m.MethodName,
			ClientStreams: true,
			Handler: func(srv any, stream grpc.ServerStream) error {
				return s.call(stream, method, func(ctx context.Context, read func(any) error) (any, error) {
					return m.Handler(srv, ctx, read, nil)
				})
			},
		})
	}
	desc.Methods = nil
	return &desc
}

// call takes a call through its life: counted, its caller known, its request
// read when there is room for it, answered when it is its host's turn, and counted
// until its answer has been written.
func (s *service) call(stream grpc.ServerStream, method string, handle func(context.Context, func(any) error) (any, error)) (err error) {
	ctx, started := stream.Context(), time.Now()
	var caller Caller
	known := false
	defer func() {
		if r := recover(); r != nil {
			s.a.cfg.Log.ErrorContext(ctx, "call panicked", "method", method, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "authority: internal error")
		}
		err = briefly(err)
		s.a.metrics.called(path.Base(method), status.Code(err), hostLabel(caller, known), time.Since(started))
		s.a.cfg.Log.DebugContext(ctx, "call", "method", method, "code", status.Code(err).String(),
			"duration_ms", time.Since(started).Milliseconds(), "peer", peerOf(ctx))
	}()
	peer := s.peer(ctx)
	end, ok := s.a.limits.startCall(peer)
	if !ok {
		return s.a.limited(ctx, peer, limitCalls, time.Second, "%d calls of this host are in flight, as many as it may have", s.a.limits.Calls)
	}
	defer end()
	if caller, err = s.identify(ctx, method); err != nil {
		return err
	}
	known = true
	room := &room{a: s.a, peer: peer}
	defer room.leave()
	ctx = context.WithValue(withCaller(ctx, caller), roomKey{}, room)
	res, err := handle(ctx, func(req any) error { return room.read(ctx, stream, req) })
	if err != nil {
		return err
	}
	room.leave() // who does not read takes nobody's turn
	return send(stream, res)
}

// briefly bounds an error's words.
func briefly(err error) error {
	if s := status.Convert(err); len(s.Message()) > maxWhy {
		p := s.Proto()
		p.Message = brief(p.GetMessage())
		return status.FromProto(p).Err()
	}
	return err
}

// send answers, and waits until nothing of the answer lies here any more. gRPC
// itself takes an answer in, however long nobody reads it.
func send(stream grpc.ServerStream, res any) error {
	a := newAnswer(res)
	if err := stream.SendMsg(a); err != nil {
		return err
	}
	select {
	case <-a.gone:
	case <-streamEnd(stream.Context()):
	}
	return nil
}

// room is what a call holds of what is shared.
type room struct {
	a    *Authority
	peer string

	incoming, running *share
}

type roomKey struct{}

// stepAside lets others have the turn for the rest of a call, which from now on
// waits for somebody else: GitLab, or the log.
func stepAside(ctx context.Context) {
	if r, ok := ctx.Value(roomKey{}).(*room); ok {
		r.running.leave()
	}
}

// read waits for room for any request, reads one, and waits for the host's turn
// to have it answered. A request that comes slowly takes its own host's room alone.
func (r *room) read(ctx context.Context, stream grpc.ServerStream, req any) (err error) {
	if r.incoming, err = r.a.limits.incoming.enter(ctx, r.peer, MaxMessage); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	arrived := r.a.limits.arrived.enter(r.peer, cancel)
	defer func() {
		if arrived.leave() {
			err = r.a.limited(ctx, r.peer, limitArriving, time.Second, "requests take too much memory, and those of this host the most of it")
		}
	}()
	data, err := receive(ctx, stream, arrived)
	if errors.Is(err, errMessage) {
		return r.a.limited(ctx, r.peer, limitMessage, 0, "%v", err)
	}
	if err != nil {
		return err
	}
	if err := decode(data, req); errors.Is(err, errFields) {
		return r.a.limited(ctx, r.peer, limitFields, 0, "%v", err)
	} else if err != nil {
		return err
	}
	r.incoming.shrink(int64(len(data)))
	r.running, err = r.a.limits.running.enter(ctx, r.peer, 1)
	return err
}

// receive reads a request's pieces until there are no more, or ctx ends. gRPC
// gives up reading only with the stream, which ends when the call does.
func receive(ctx context.Context, stream grpc.ServerStream, arrived *request) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	came := make(chan result, 1)
	go func() {
		data, err := receiveAll(stream, arrived)
		came <- result{data, err}
	}()
	select {
	case r := <-came:
		return r.data, r.err
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func receiveAll(stream grpc.ServerStream, arrived *request) ([]byte, error) {
	var p pieces
	for {
		before := len(p.data)
		err := stream.RecvMsg(&p)
		if errors.Is(err, io.EOF) {
			return p.data, nil
		}
		if err != nil {
			return nil, err
		}
		if len(p.data) > MaxMessage {
			return nil, errMessage
		}
		if !arrived.grow(int64(len(p.data) - before)) {
			return nil, context.Canceled
		}
	}
}

func (r *room) leave() {
	r.incoming.leave()
	r.running.leave()
}

type streamEndKey struct{}

// withDeadline gives every call an end, from its first byte on. An answer that is
// on its way by then may still be read.
func withDeadline(ctx context.Context, _ *tap.Info) (context.Context, error) {
	timed, cancel := context.WithTimeout(ctx, callTimeout)
	context.AfterFunc(ctx, cancel)
	return context.WithValue(timed, streamEndKey{}, ctx.Done()), nil
}

// streamEnd is closed when the peer takes a call back, or its connection ends.
func streamEnd(ctx context.Context) <-chan struct{} {
	end, _ := ctx.Value(streamEndKey{}).(<-chan struct{})
	return end
}

func hostLabel(c Caller, known bool) string {
	if !known {
		return "unknown"
	}
	return hostName(c.Host)
}
