package confine

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// User is a user of this machine, with its groups.
type User struct {
	name     string
	UID, GID int
	groups   []int
}

// LookupUser returns the user of NAME or NAME:GROUP. With GROUP, the user has no other groups.
func LookupUser(text string) (User, error) {
	name, group, grouped := strings.Cut(text, ":")
	found, err := user.Lookup(name)
	if err != nil {
		return User{}, fmt.Errorf("there is no user %q", name)
	}
	ids := []string{found.Uid, found.Gid}
	if grouped {
		g, err := user.LookupGroup(group)
		if err != nil {
			return User{}, fmt.Errorf("there is no group %q", group)
		}
		ids[1] = g.Gid
	} else {
		all, err := found.GroupIds()
		if err != nil {
			return User{}, fmt.Errorf("finding the groups of user %q: %w", name, err)
		}
		ids = append(ids, all...)
	}
	numbers := make([]int, len(ids))
	for i, id := range ids {
		if numbers[i], err = strconv.Atoi(id); err != nil {
			return User{}, fmt.Errorf("user %q: %w", name, err)
		}
	}
	return User{name, numbers[0], numbers[1], numbers[1:]}, nil
}

// Become gives all threads of this process the user's rights instead of root's. It does nothing if the process has them
// already.
func (u User) Become() error {
	switch os.Geteuid() {
	case u.UID:
		return nil
	case 0:
	default:
		return fmt.Errorf("only root can become user %q", u.name)
	}
	err := syscall.Setgroups(u.groups)
	if err == nil {
		err = syscall.Setresgid(u.GID, u.GID, u.GID)
	}
	if err == nil {
		err = syscall.Setresuid(u.UID, u.UID, u.UID)
	}
	if err == nil && u.UID != 0 {
		err = checkPowerless()
	}
	if err != nil {
		return fmt.Errorf("becoming user %q: %w", u.name, err)
	}
	return nil
}

// checkPowerless returns an error if the process has a capability.
func checkPowerless() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	if data[0].Permitted|data[1].Permitted|data[0].Effective|data[1].Effective != 0 {
		return errors.New("the process keeps capabilities")
	}
	return nil
}
