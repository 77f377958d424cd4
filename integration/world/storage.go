package world

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"hallmark.build/integration/azurite"
)

// What the runners registered as [Stored] and [Assumed] know of their object storage.
const (
	StorageBucket    = "caches"
	StorageAccessKey = "hallmark"
	StorageSecretKey = "hallmark-secret"
)

// storageRole is whose rights the runner registered as [Assumed] gives to helpers.
const storageRole = "arn:aws:iam::123456789012:role/caches"

// StorageAccount and storageDomain are the storage's name as Azure's clients say it.
var StorageAccount, storageDomain, _ = strings.Cut(StorageName, ".")

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

// storageBlock is what a runner's block ends with to keep caches there, with rights
// of its own or of a role.
func storageBlock(role string) string {
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
      RoleARN = %q
`, StorageName, StorageAccessKey, StorageSecretKey, StorageBucket, role)
}

// azureBlock is the same with Azure.
func azureBlock() string {
	return fmt.Sprintf(`
  [runners.cache]
    Type = "azure"
    Path = "ci"
    Shared = true
    [runners.cache.azure]
      AccountName = %q
      AccountKey = %q
      ContainerName = %q
      StorageDomain = %q
`, StorageAccount, azurite.Key, StorageBucket, storageDomain)
}

// assumeRole answers as AWS does who is asked for the credentials of a role. They are
// the storage's own here, which knows no others.
func assumeRole(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("Action") != "AssumeRole" || r.FormValue("RoleArn") != storageRole {
		http.Error(w, "nobody is there", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/xml")
	fmt.Fprintf(w, `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken></SessionToken><Expiration>%s</Expiration>
</Credentials></AssumeRoleResult></AssumeRoleResponse>`, StorageAccessKey, StorageSecretKey, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
}
