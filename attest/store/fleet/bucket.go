package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"hallmark.build/attest/store"
)

const (
	maxBundle  = 256 << 20 // bytes; the largest statement is far from it
	maxUploads = 4         // at a time, of one attempt
	prefix     = "bundles/"
)

// A bucket keeps bundles by their SHA-256.
type bucket struct {
	name   string
	client *minio.Client
}

func openBucket(ctx context.Context, o Options) (*bucket, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	client, err := minio.New(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4(o.AccessKey, o.SecretKey, ""), Secure: u.Scheme == "https", Region: o.Region,
		Transport: transport(o), BucketLookup: minio.BucketLookupPath, MaxRetries: 3,
	})
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, maxCall)
	defer cancel()
	there, err := client.BucketExists(ctx, o.Bucket)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", o.Bucket, err)
	}
	if !there {
		return nil, fmt.Errorf("bucket %s: does not exist: make it, for the authority alone", o.Bucket)
	}
	return &bucket{o.Bucket, client}, nil
}

func transport(o Options) http.RoundTripper {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Roots},
		TLSHandshakeTimeout:   maxConnect,
		ResponseHeaderTimeout: maxCall,
		MaxIdleConnsPerHost:   maxConnections,
		MaxConnsPerHost:       maxLocks,
		IdleConnTimeout:       time.Minute,
	}
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// put stores a bundle. Doing so again changes nothing.
func (b *bucket) put(ctx context.Context, digest string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, maxCall)
	defer cancel()
	_, err := b.client.PutObject(ctx, b.name, prefix+digest, bytes.NewReader(data), int64(len(data)),
		minio.PutObjectOptions{ContentType: "application/json", DisableMultipart: true, SendContentMd5: true})
	if err != nil {
		return fmt.Errorf("bucket: put %s: %w", digest, err)
	}
	return nil
}

// get reads a bundle and checks that it is the one that was stored.
func (b *bucket) get(ctx context.Context, digest string) ([]byte, error) {
	o, err := b.client.GetObject(ctx, b.name, prefix+digest, minio.GetObjectOptions{})
	if err != nil {
		return nil, fmt.Errorf("bucket: get %s: %w", digest, err)
	}
	defer o.Close()
	data, err := io.ReadAll(io.LimitReader(o, maxBundle+1))
	switch {
	case minio.ToErrorResponse(err).Code == minio.NoSuchKey:
		return nil, store.ErrNotFound
	case err != nil:
		return nil, fmt.Errorf("bucket: get %s: %w", digest, err)
	case len(data) > maxBundle || digestOf(data) != digest:
		return nil, fmt.Errorf("bundle %s: content was altered", digest)
	}
	return data, nil
}

func (b *bucket) remove(ctx context.Context, digest string) error {
	if err := b.client.RemoveObject(ctx, b.name, prefix+digest, minio.RemoveObjectOptions{}); err != nil {
		return fmt.Errorf("bucket: remove %s: %w", digest, err)
	}
	return nil
}

// list names all bundles.
func (b *bucket) list(ctx context.Context) ([]string, error) {
	var out []string
	for o := range b.client.ListObjectsIter(ctx, b.name, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, fmt.Errorf("bucket: list: %w", o.Err)
		}
		out = append(out, strings.TrimPrefix(o.Key, prefix))
	}
	return out, nil
}

// Content reads a bundle.
func (s *Store) Content(ctx context.Context, digest string) ([]byte, error) {
	if b, err := hex.DecodeString(digest); err != nil || len(b) != sha256.Size {
		return nil, store.ErrNotFound
	}
	ctx, cancel := context.WithTimeout(ctx, maxCall)
	defer cancel()
	data, err := s.bucket.get(ctx, digest)
	if !errors.Is(err, store.ErrNotFound) {
		return data, wrap(err)
	}
	decided, err := s.HasBundle(ctx, digest)
	if err != nil {
		return nil, err
	}
	if decided {
		return nil, fmt.Errorf("store: bundle %s: content was lost", digest)
	}
	return nil, store.ErrNotFound
}

// HasBundle reports whether a decision holds the bundle.
func (s *Store) HasBundle(ctx context.Context, digest string) (bool, error) {
	var has bool
	err := s.with(ctx, func(ctx context.Context, c conn) error {
		return c.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM bundles WHERE sha256 = $1)", store.Text(digest)).Scan(&has)
	})
	return has, err
}

// EachBundle calls each with every decided bundle. It verifies what it reads.
func (s *Store) EachBundle(ctx context.Context, each func(digest string, bundle []byte) error) error {
	decided, err := list(ctx, s, pgx.RowTo[string], "SELECT sha256 FROM bundles ORDER BY sha256")
	if err != nil {
		return err
	}
	for _, digest := range decided {
		data, err := s.Content(ctx, digest)
		if err != nil {
			return err
		}
		if err := each(digest, data); err != nil {
			return err
		}
	}
	return nil
}
