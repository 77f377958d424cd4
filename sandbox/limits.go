package sandbox

// Limits bound what a job may use: each container for itself, but for the disk.
// Zero means the runtime's default.
type Limits struct {
	MemoryBytes      int64
	SwapBytes        int64   // beyond MemoryBytes
	ReservationBytes int64   // what is left to it when the host has too little
	CPUs             float64 // whole processors; 1.5 is one and a half
	CPUShares        int64   // its part where processors are short; 1024 is usual
	CPUSet           string  // which processors, as in "0-3,6"
	Pids             int64
	ShmBytes         int64 // size of /dev/shm
	TmpfsBytes       int64 // size of each other tmpfs of the runtime's (/tmp and /run of the helper)
	OpenFiles        uint64
	Ulimits          []Ulimit
	Tmpfs            []Tmpfs
	Devices          []string // character devices of the host, by their paths

	// DiskBytes bounds the workspace and what all containers write, together.
	// The runtime does not see to it; see Spec.Scratch.
	DiskBytes int64
}

// Unlimited is a Ulimit's way to say that there is none.
const Unlimited = ^uint64(0)

// A Ulimit is a resource limit of each process.
type Ulimit struct {
	Name       string // as in "memlock"
	Soft, Hard uint64
}

// A Tmpfs is memory that looks like a directory.
type Tmpfs struct {
	Path  string
	Bytes int64
	Exec  bool // programs may be run from it
}

// A Hit is a limit that something in a container ran into.
type Hit struct {
	Limit string // "memory", "pids" or "tmpfs"
	Path  string // of a tmpfs
	Max   int64  // bytes or processes
	Used  int64  // the most that was seen
	Count int64  // processes ended or refused
}
