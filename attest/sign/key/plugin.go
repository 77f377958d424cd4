package key

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"hallmark.build/attest/sign/key/token"
)

const (
	pluginPrefix  = "sigstore-kms-"
	pluginVersion = "v1"
	maxAnswer     = 64 << 10 // bytes on standard output
	maxResource   = 4096     // bytes of an id
)

// A plugin is a key behind one of Sigstore's plugins.
type plugin struct {
	path, resource string
	timeout        time.Duration
}

// openPlugin opens NAME://ID.
func openPlugin(ctx context.Context, name, rest string, o Options) (Key, error) {
	resource, ok := strings.CutPrefix(rest, "//")
	if !ok || resource == "" || len(resource) > maxResource || strings.ContainsRune(resource, 0) {
		return nil, fmt.Errorf("key: %s: want NAME://ID", name)
	}
	path, err := exec.LookPath(pluginPrefix + name)
	if err != nil {
		return nil, fmt.Errorf("key: %w: install the plugin where the authority's PATH finds it", err)
	}
	p := plugin{path, resource, o.Timeout}
	public, err := p.public(ctx)
	if err != nil {
		return nil, fmt.Errorf("key: %s%s: %w", pluginPrefix, name, err)
	}
	sign := func(ctx context.Context, digest []byte) ([]byte, error) {
		signature, err := p.sign(ctx, digest)
		if err != nil {
			return nil, fmt.Errorf("%s%s: %w", pluginPrefix, name, err)
		}
		return signature, nil
	}
	return remote{public, sign, func() error { return nil }}, nil
}

// What the protocol calls things. Empty members are left as the protocol's own
// library writes them.
type (
	pluginCall struct {
		InitOptions initOptions `json:"initOptions"`
		MethodName  string      `json:"methodName"`
		PublicKey   *struct {
			Options rpcOptions `json:"publicKeyOptions"`
		} `json:"publicKey,omitempty"`
		SignMessage *signMessage `json:"signMessage,omitempty"`
	}
	initOptions struct {
		CtxDeadline     *time.Time  `json:"ctxDeadline,omitempty"`
		ProtocolVersion string      `json:"protocolVersion"`
		KeyResourceID   string      `json:"keyResourceID"`
		HashFunc        crypto.Hash `json:"hashFunc"`
		RPCOptions      rpcOptions  `json:"rpcOptions"`
	}
	rpcOptions  struct{}
	signMessage struct {
		Options struct {
			RPC     rpcOptions `json:"rpcOptions"`
			Message struct {
				Digest   []byte      `json:"digest"`
				HashFunc crypto.Hash `json:"hashFunc"`
			} `json:"messageOptions"`
		} `json:"signOptions"`
	}
	pluginAnswer struct {
		ErrorMessage string `json:"errorMessage"`
		PublicKey    *struct {
			PEM []byte `json:"publicKeyPEM"`
		} `json:"publicKey"`
		SignMessage *struct {
			Signature []byte `json:"signature"`
		} `json:"signMessage"`
	}
)

func (p plugin) public(ctx context.Context) (*ecdsa.PublicKey, error) {
	call := pluginCall{MethodName: "publicKey"}
	call.PublicKey = &struct {
		Options rpcOptions `json:"publicKeyOptions"`
	}{}
	answer, err := p.call(ctx, call)
	if err != nil {
		return nil, err
	}
	return answer.public()
}

func (p plugin) sign(ctx context.Context, digest []byte) ([]byte, error) {
	call := pluginCall{MethodName: "signMessage", SignMessage: &signMessage{}}
	call.SignMessage.Options.Message.Digest = digest
	call.SignMessage.Options.Message.HashFunc = crypto.SHA256
	answer, err := p.call(ctx, call)
	if err != nil {
		return nil, err
	}
	if answer.SignMessage == nil || answer.PublicKey != nil || len(answer.SignMessage.Signature) == 0 {
		return nil, errors.New("the answer is not a signature")
	}
	return answer.SignMessage.Signature, nil
}

func (a pluginAnswer) public() (*ecdsa.PublicKey, error) {
	if a.PublicKey == nil || a.SignMessage != nil {
		return nil, errors.New("the answer is not a public key")
	}
	b, rest := pem.Decode(a.PublicKey.PEM)
	if b == nil || b.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("its public key is not one in PEM")
	}
	pub, err := x509.ParsePKIXPublicKey(b.Bytes)
	if err != nil {
		return nil, errors.New("its public key does not parse")
	}
	return p256(pub)
}

// call runs the plugin for one method. Its exit status says nothing, by the
// protocol; its standard error goes nowhere, for it is not ours to vouch for.
func (p plugin) call(ctx context.Context, call pluginCall) (pluginAnswer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout, fmt.Errorf("no answer within %s", p.timeout))
	defer cancel()
	deadline, _ := ctx.Deadline()
	call.InitOptions = initOptions{
		CtxDeadline: &deadline, ProtocolVersion: pluginVersion, KeyResourceID: p.resource, HashFunc: crypto.SHA256,
	}
	args, err := json.Marshal(call)
	if err != nil {
		return pluginAnswer{}, err
	}
	out := &bounded{most: maxAnswer}
	cmd := exec.CommandContext(ctx, p.path, pluginVersion, string(args))
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, token.PINVariable+"=") })
	cmd.Stdout = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // to end with its children
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	_, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case ctx.Err() != nil:
		return pluginAnswer{}, context.Cause(ctx)
	case out.full:
		return pluginAnswer{}, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	case err != nil && !exited:
		return pluginAnswer{}, err
	}
	return parseAnswer(out.text)
}

// parseAnswer reads one answer and nothing else.
func parseAnswer(text []byte) (pluginAnswer, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var a pluginAnswer
	if err := dec.Decode(&a); err != nil {
		return pluginAnswer{}, errors.New("the answer is not what the protocol has")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return pluginAnswer{}, errors.New("more follows the answer")
	}
	if a.ErrorMessage != "" {
		return pluginAnswer{}, fmt.Errorf("it says: %.1000q", a.ErrorMessage)
	}
	return a, nil
}

// A bounded writer takes no more than so much.
type bounded struct {
	text []byte
	most int
	full bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.full = b.full || len(b.text)+len(p) > b.most; b.full {
		return 0, io.ErrShortWrite // which ends the program that writes
	}
	b.text = append(b.text, p...)
	return len(p), nil
}
