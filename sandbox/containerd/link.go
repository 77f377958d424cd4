package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/containerd/initproto"
)

// sendTimeout bounds how long init may leave a message unread.
const sendTimeout = 10 * time.Second

// A link is the host's end of the connection to one init.
type link struct {
	conn *net.UnixConn
	buf  []byte
}

// listen opens the socket that init will connect to, for the container's root.
func listen(b box, ids sandbox.IDs) (*net.UnixListener, error) {
	if err := os.Mkdir(b.control(), 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: b.socket()})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := errors.Join(os.Chown(b.socket(), int(ids.First), int(ids.First)), os.Chmod(b.socket(), 0o600)); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), l.Close())
	}
	return l, nil
}

// accept takes the one connection, which must be the task's first process's.
// It runs until then, or until ctx ends.
func accept(ctx context.Context, l *net.UnixListener, pid int, uid uint32) (*link, error) {
	defer l.Close() // unlinks the socket too
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	conn, err := l.AcceptUnix()
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := checkPeer(conn, pid, uid); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &link{conn: conn, buf: make([]byte, initproto.MaxMessage+1)}, nil
}

func checkPeer(conn *net.UnixConn, pid int, uid uint32) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, credErr); err != nil {
		return fmt.Errorf("control socket: peer: %w", err)
	}
	if int(cred.Pid) != pid || cred.Uid != uid {
		return &sandbox.SecurityError{Err: fmt.Errorf("control socket: process %d of user %d connected in place of init", cred.Pid, cred.Uid)}
	}
	return nil
}

// send gives init one message with descriptors beside it. It may run beside
// receive and other sends.
func (l *link) send(m initproto.Message, files ...*os.File) error {
	b, err := initproto.Encode(m)
	if err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, 0, len(files))
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		rights = unix.UnixRights(fds...)
	}
	if err := l.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	_, _, err = l.conn.WriteMsgUnix(b, rights, nil)
	return err
}

// receive waits for init's next message. It is not for concurrent use.
func (l *link) receive() (initproto.Message, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := l.conn.ReadMsgUnix(l.buf, oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	if oobn != 0 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		closeRights(oob[:oobn])
		return nil, errors.New("init sends more than a message")
	}
	return initproto.Decode(l.buf[:n])
}

// closeRights closes descriptors that nobody asked for.
func closeRights(oob []byte) {
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range controls {
		fds, err := unix.ParseUnixRights(&controls[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}
