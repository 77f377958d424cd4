package tomlfile

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// units are powers of 1024 alone: a memory limit in powers of 1000 is nearly
// always a slip.
var units = []struct {
	name  string
	bytes int64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"B", 1},
}

// ParseSize reads a whole number with a unit, such as "4GiB", as bytes.
func ParseSize(s string) (int64, error) {
	for _, unit := range units {
		digits, ok := strings.CutSuffix(s, unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 63)
		if err != nil || digits != strconv.FormatUint(n, 10) {
			break
		}
		if int64(n) > math.MaxInt64/unit.bytes {
			return 0, fmt.Errorf("%s is too large a size", quote(s))
		}
		return int64(n) * unit.bytes, nil
	}
	return 0, fmt.Errorf("%s is not a size", quote(s))
}

// FormatSize writes bytes with the largest unit that divides them.
func FormatSize(n int64) string {
	for i := len(units) - 2; i >= 0; i-- {
		if n != 0 && n%units[i].bytes == 0 {
			return strconv.FormatInt(n/units[i].bytes, 10) + units[i].name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}
