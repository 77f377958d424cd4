package parity

import (
	"os"
	"testing"

	"hallmark.build/integration/harness"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
)

// theWorld is what every test stands in. It is set once, before the first.
var theWorld *world.World

func TestMain(m *testing.M) {
	opts := world.Options{
		Images: []string{images.Helper, images.Go, images.Shell, images.User, images.Redis},
		More:   images.Jobs(),
		Docker: true,
	}
	os.Exit(harness.Main(m, opts, func(w *world.World) error {
		theWorld = w
		return nil
	}))
}
