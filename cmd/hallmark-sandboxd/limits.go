package main

import (
	"hallmark.build/config"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/containerd"
	"hallmark.build/sandbox/host"
)

type limits struct {
	all      sandbox.Limits
	projects []host.ProjectLimits
	devices  []host.Device
}

// limitsOf takes the limits over from the configuration, and looks at the devices
// that it names.
func limitsOf(c config.Limits) (limits, error) {
	l := limits{all: sandbox.Limits{
		MemoryBytes: c.Memory, SwapBytes: max(c.MemorySwap-c.Memory, 0), ReservationBytes: c.MemoryReservation,
		CPUs: c.CPUs, CPUShares: c.CPUShares, CPUSet: c.CPUSet, Pids: c.Pids,
		DiskBytes: c.Disk, ShmBytes: c.Shm, TmpfsBytes: c.Tmpfs, OpenFiles: c.OpenFiles,
	}}
	for _, text := range c.Ulimits {
		u, err := config.ParseUlimit(text)
		if err != nil {
			return limits{}, err
		}
		l.all.Ulimits = append(l.all.Ulimits, sandbox.Ulimit(u))
	}
	for _, m := range c.TmpfsMounts {
		l.all.Tmpfs = append(l.all.Tmpfs, sandbox.Tmpfs{Path: m.Path, Bytes: m.Size, Exec: m.Exec})
	}
	for _, d := range c.Devices {
		if err := containerd.CheckDevice(d.Path); err != nil {
			return limits{}, err
		}
		l.devices = append(l.devices, host.Device{Path: d.Path, Projects: d.Projects})
	}
	for _, p := range c.Projects {
		l.projects = append(l.projects, host.ProjectLimits{
			Project: p.Project, MemoryBytes: p.Memory, CPUs: p.CPUs, Pids: p.Pids, DiskBytes: p.Disk, ShmBytes: p.Shm,
		})
	}
	return l, nil
}
