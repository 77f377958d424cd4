// Command hallmark-kms is Sigstore's key plugins for the services of AWS,
// Azure, Google and Vault.
//
// hallmark-attestd, as well as cosign, runs it under one of the names
// sigstore-kms-awskms, -azurekms, -gcpkms and -hashivault, once for each
// signature, and reaches keys as "awskms://…" and so on; the part after "://" is
// what Sigstore's documentation of that service says. Credentials come from the
// environment, as the service's own tools take them. It is a module and a
// program of its own, so that neither the authority's process nor its choice of
// versions has anything of the services' libraries.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/sigstore/sigstore/pkg/signature/kms"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/aws"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/azure"
	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/common"
	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/handler"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/gcp"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/hashivault"
)

const prefix = "sigstore-kms-"

// services are the names that it goes by.
func services() []string { return []string{"awskms", "azurekms", "gcpkms", "hashivault"} }

func main() { os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	service, ok := serviceOf(args[0])
	if !ok {
		fmt.Fprintf(stderr, "error: run it as %s followed by one of %s: a link to it will do\n", prefix, strings.Join(services(), ", "))
		return 2
	}
	if err := serve(service, args, stdin, stdout); err != nil {
		_ = handler.WriteErrorResponse(stdout, err)
		return 1
	}
	return 0
}

// serviceOf is the service that a program's name stands for.
func serviceOf(program string) (string, bool) {
	name, ok := strings.CutPrefix(filepath.Base(program), prefix)
	for _, s := range services() {
		if ok && name == s {
			return s, true
		}
	}
	return "", false
}

// serve answers one call. A failed method has been answered by Dispatch.
func serve(service string, args []string, stdin io.Reader, stdout io.Writer) error {
	call, err := handler.GetPluginArgs(args)
	if err != nil {
		return err
	}
	switch {
	case args[1] != common.ProtocolVersion:
		return fmt.Errorf("protocol %q: this program knows %q", args[1], common.ProtocolVersion)
	case call.InitOptions == nil || call.MethodArgs == nil:
		return handler.ErrorPluginArgsParse
	}
	ctx := context.Background()
	if deadline := call.InitOptions.CtxDeadline; deadline != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, *deadline)
		defer cancel()
	}
	key, err := kms.Get(ctx, service+"://"+call.InitOptions.KeyResourceID, call.InitOptions.HashFunc)
	if err != nil {
		return err
	}
	_, err = handler.Dispatch(stdout, stdin, call, key)
	return err
}
