package token

import (
	"bufio"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"time"
)

// program is found on PATH.
const program = "hallmark-pkcs11"

// pause is between two starts: each is a login.
const pause = 10 * time.Second

// A Client asks the process that holds a token's key. It is safe for concurrent use.
type Client struct {
	uri     string
	public  crypto.PublicKey
	timeout time.Duration
	pause   time.Duration

	mu      sync.Mutex
	process *process
	started time.Time
}

// Open starts the process and learns the public key. Timeout bounds the start
// and each signature.
func Open(ctx context.Context, uri string, timeout time.Duration) (*Client, error) {
	if _, err := Parse(uri); err != nil {
		return nil, fmt.Errorf("pkcs11: %w", err)
	}
	c := &Client{uri: uri, timeout: timeout, pause: pause}
	p, public, err := c.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("pkcs11: %w", err)
	}
	c.process, c.public, c.started = p, public, time.Now()
	return c, nil
}

// Public is the key's public half.
func (c *Client) Public() crypto.PublicKey { return c.public }

// Sign has a digest signed.
func (c *Client) Sign(ctx context.Context, digest []byte) ([]byte, error) {
	if len(digest) != sha256.Size {
		return nil, fmt.Errorf("pkcs11: digest of %d bytes", len(digest))
	}
	p, err := c.running(ctx)
	if err != nil {
		return nil, fmt.Errorf("pkcs11: %w", err)
	}
	signature, err := p.sign(ctx, digest, c.timeout)
	if err != nil {
		return nil, fmt.Errorf("pkcs11: %w", err)
	}
	return signature, nil
}

// Close ends the process.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process != nil {
		c.process.stop()
	}
	return nil
}

// running is the process, started again if it has ended.
func (c *Client) running(ctx context.Context) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.process.ended:
	default:
		return c.process, nil
	}
	if since := time.Since(c.started); since < c.pause {
		return nil, fmt.Errorf("%s has ended; it is started again in %s", program, (c.pause - since).Round(time.Second))
	}
	c.started = time.Now()
	p, public, err := c.start(ctx)
	if err != nil {
		return nil, err
	}
	if k, ok := c.public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(public) {
		p.stop()
		return nil, errors.New("the token has another key now")
	}
	c.process = p
	return p, nil
}

// A process is one run of the program.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed once nothing more is answered

	writing sync.Mutex
	stdin   io.WriteCloser

	mu      sync.Mutex
	last    uint32
	waiting map[uint32]chan answer
}

// start runs the program and reads its first answer.
func (c *Client) start(ctx context.Context) (*process, crypto.PublicKey, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: install it beside hallmark-attestd", err)
	}
	p := &process{cmd: exec.Command(path, c.uri), ended: make(chan struct{}), waiting: map[uint32]chan answer{}}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	hello := make(chan answer, 1)
	p.waiting[0] = hello
	if err := p.cmd.Start(); err != nil {
		return nil, nil, err
	}
	go p.read(bufio.NewReader(stdout))
	first, err := p.wait(ctx, hello, c.timeout)
	if err != nil {
		p.stop()
		return nil, nil, err
	}
	public, err := x509.ParsePKIXPublicKey(first)
	if err != nil {
		p.stop()
		return nil, nil, fmt.Errorf("%s: its public key does not parse", program)
	}
	return p, public, nil
}

// read hands answers to those who wait, until there are no more.
func (p *process) read(r io.Reader) {
	defer close(p.ended)
	for {
		a, err := readAnswer(r)
		if err != nil {
			break
		}
		p.mu.Lock()
		to := p.waiting[a.id]
		delete(p.waiting, a.id)
		p.mu.Unlock()
		if to == nil {
			break // to a question that nobody asked
		}
		to <- a
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *process) sign(ctx context.Context, digest []byte, timeout time.Duration) ([]byte, error) {
	to := make(chan answer, 1)
	p.mu.Lock()
	for p.last++; p.last == 0 || p.waiting[p.last] != nil; p.last++ {
	}
	req := request{p.last, [sha256.Size]byte(digest)}
	p.waiting[req.id] = to
	p.mu.Unlock()

	p.writing.Lock()
	err := req.write(p.stdin)
	p.writing.Unlock()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	return p.wait(ctx, to, timeout)
}

// wait waits for one answer. A program that is silent for too long is stopped;
// a caller who waits no longer leaves it be.
func (p *process) wait(ctx context.Context, to <-chan answer, timeout time.Duration) ([]byte, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case a := <-to:
		return a.result()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		p.stop()
		return nil, fmt.Errorf("%s: no answer within %s", program, timeout)
	case <-p.ended:
		select { // its last word may be the answer
		case a := <-to:
			return a.result()
		default:
			return nil, fmt.Errorf("%s has ended", program)
		}
	}
}

// stop ends the program, kindly if it listens.
func (p *process) stop() {
	_ = p.stdin.Close()
	select {
	case <-p.ended:
	case <-time.After(2 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}
