package main

import (
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// etc is where the image says who its users are.
const etc = "/etc"

// Limits on what an image may say of its users.
const (
	maxAccounts = 1 << 20 // bytes of passwd, and of group
	maxGroups   = 256     // supplementary groups of one user
)

// A user is what a stage runs as.
type user struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// lookup resolves "", "uid", "uid:gid", "name" or "name:group", each part by
// number or by name. A number is always taken as one, whatever names the image
// has. Without a group it is the user's own with the supplementary ones; with
// a group it is that one alone.
func lookup(etc, s string, maxID uint32) (user, error) {
	name, group, explicit := strings.Cut(s, ":")
	if explicit && (name == "" || group == "") {
		return user{}, errors.New("user " + strconv.Quote(s) + ": want user or user:group")
	}
	if name == "" {
		name = "0"
	}
	passwd, err := accounts(etc + "/passwd")
	if err != nil {
		return user{}, err
	}
	who, account, err := findUser(passwd, name)
	if err != nil {
		return user{}, err
	}
	groups, err := accounts(etc + "/group")
	if err != nil {
		return user{}, err
	}
	if explicit {
		who.gid, err = findGroup(groups, group)
	} else {
		who.groups, err = memberships(groups, account)
	}
	if err != nil {
		return user{}, err
	}
	for _, id := range append([]uint32{who.uid, who.gid}, who.groups...) {
		if id > maxID {
			return user{}, errors.New("user " + strconv.Quote(s) + ": id " + strconv.FormatUint(uint64(id), 10) + " is above " + strconv.FormatUint(uint64(maxID), 10))
		}
	}
	return who, nil
}

// findUser finds a user with the name of its account, if it has one.
func findUser(passwd [][]string, name string) (user, string, error) {
	id, numeric := number(name)
	for _, f := range passwd {
		if len(f) < 4 {
			continue
		}
		uid, ok1 := number(f[2])
		gid, ok2 := number(f[3])
		if !ok1 || !ok2 || numeric && uid != id || !numeric && f[0] != name {
			continue
		}
		who := user{uid: uid, gid: gid, home: "/"}
		if len(f) > 5 && strings.HasPrefix(f[5], "/") {
			who.home = f[5]
		}
		return who, f[0], nil
	}
	if !numeric {
		return user{}, "", errors.New("user " + strconv.Quote(name) + ": not in /etc/passwd")
	}
	return user{uid: id, home: "/"}, "", nil
}

func findGroup(groups [][]string, name string) (uint32, error) {
	if id, ok := number(name); ok {
		return id, nil
	}
	for _, f := range groups {
		if len(f) < 3 || f[0] != name {
			continue
		}
		if id, ok := number(f[2]); ok {
			return id, nil
		}
	}
	return 0, errors.New("group " + strconv.Quote(name) + ": not in /etc/group")
}

func memberships(groups [][]string, account string) ([]uint32, error) {
	if account == "" {
		return nil, nil
	}
	var ids []uint32
	for _, f := range groups {
		if len(f) < 4 || !slices.Contains(strings.Split(f[3], ","), account) {
			continue
		}
		id, ok := number(f[2])
		if !ok || slices.Contains(ids, id) {
			continue
		}
		if len(ids) == maxGroups {
			return nil, errors.New("user " + strconv.Quote(account) + ": more than " + strconv.Itoa(maxGroups) + " groups")
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// number reads digits and nothing else.
func number(s string) (uint32, bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	// The kernel takes the highest id for "no change".
	id, err := strconv.ParseUint(s, 10, 32)
	return uint32(id), err == nil && id != 1<<32-1
}

// accounts reads a file of colon-separated lines; a missing one has none.
func accounts(path string) ([][]string, error) {
	data, err := readRegular(path, maxAccounts)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseAccounts(string(data)), nil
}

func parseAccounts(data string) [][]string {
	var all [][]string
	for line := range strings.SplitSeq(data, "\n") {
		if line == "" || line[0] == '#' || strings.IndexByte(line, 0) >= 0 {
			continue
		}
		all = append(all, strings.Split(line, ":"))
	}
	return all
}

// readRegular reads a file of the image, which may have put anything there.
func readRegular(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New(path + ": not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, errors.New(path + ": larger than " + strconv.FormatInt(limit, 10) + " bytes")
	}
	return data, nil
}
