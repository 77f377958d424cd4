package authority

import (
	"io"
	"slices"
	"sync"
)

// A crowd bounds connections, in all and by what they have in common: an address
// or a host. Whoever comes last is let in; the oldest of those who take the most goes.
// So connections that do nothing keep nobody out.
type crowd struct {
	total, perKey int

	mu    sync.Mutex
	in    map[string][]arrival // by key, oldest first
	all   int
	count int64 // of arrivals, ever
}

type arrival struct {
	io.Closer
	number int64
}

func newCrowd(total, perKey int) *crowd {
	return &crowd{total: total, perKey: perKey, in: map[string][]arrival{}}
}

// enter lets c in, and closes another that has to go. The function that it
// returns is called when c has ended.
func (c *crowd) enter(key string, member io.Closer) (leave func()) {
	c.mu.Lock()
	c.count++
	number := c.count
	c.in[key] = append(c.in[key], arrival{member, number})
	c.all++
	var out io.Closer
	if len(c.in[key]) > c.perKey {
		out = c.removeOldest(key)
	} else if c.all > c.total {
		out = c.removeOldest(c.greediest())
	}
	c.mu.Unlock()
	if out != nil {
		out.Close()
	}
	return func() { c.remove(key, number) }
}

func (c *crowd) removeOldest(key string) io.Closer {
	oldest := c.in[key][0]
	c.take(key, 0)
	return oldest
}

func (c *crowd) take(key string, i int) {
	c.all--
	if c.in[key] = slices.Delete(c.in[key], i, i+1); len(c.in[key]) == 0 {
		delete(c.in, key)
	}
}

// greediest is the key with the most; of equals, the one that came first.
func (c *crowd) greediest() string {
	var most string
	for key, members := range c.in {
		n, best := len(members), len(c.in[most])
		if n > best || n == best && members[0].number < c.in[most][0].number {
			most = key
		}
	}
	return most
}

func (c *crowd) remove(key string, number int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.in[key], func(a arrival) bool { return a.number == number })
	if i >= 0 {
		c.take(key, i)
	}
}

func (c *crowd) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all
}
