package world

import (
	"fmt"
	"net/http"
	"sync/atomic"
)

// What the runner registered as [Stored] knows of its object storage.
const (
	StorageBucket    = "caches"
	StorageAccessKey = "hallmark"
	StorageSecretKey = "hallmark-secret"
)

// Storage is the object storage for caches, at a private address of the internet.
// It is not there until a test says what answers.
type Storage struct{ handler atomic.Pointer[http.Handler] }

// Answer has requests answered by a handler, until the next call.
func (s *Storage) Answer(h http.Handler) { s.handler.Store(&h) }

// ServeHTTP implements [http.Handler].
func (s *Storage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := s.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	http.Error(w, "nobody is there", http.StatusServiceUnavailable)
}

// storageBlock is what a runner's block ends with to keep caches there.
func storageBlock() string {
	return fmt.Sprintf(`
  [runners.cache]
    Type = "s3"
    Path = "ci"
    Shared = true
    [runners.cache.s3]
      ServerAddress = %q
      AccessKey = %q
      SecretKey = %q
      BucketName = %q
      BucketLocation = "us-east-1"
`, StorageName, StorageAccessKey, StorageSecretKey, StorageBucket)
}
