// Package executor speaks GitLab Runner's custom-executor contract: payload,
// stages, exit codes.
//
// # The contract, as far as this package relies on it
//
// GitLab Runner starts the driver once per call: config, prepare, then run for
// each stage of the job, then cleanup. Of the environment that it hands over
// only the names without a prefix are the runner's. Every CUSTOM_ENV_ name may
// be the tenant's, whatever it claims to say, so nothing here reads one: what
// is known of a job comes from the file that JOB_RESPONSE_FILE names, see
// [ParseJob].
//
// The runner reads the driver's exit code as a verdict on whose fault a
// failure is. 1 blames the job, with the script's own status in the file that
// BUILD_EXIT_CODE_FILE names; 2 blames the platform; anything else is reported
// as a fault of the driver. Hence [Main] answers 2 unless it was told in so
// many words that the job is to blame, and a panic ends in 2 as well.
//
// # Driver and daemon
//
// The driver holds no privilege and decides nothing. It passes a request with
// a few open files over a unix stream socket to the sandbox daemon, and turns
// the reply into output and an exit code. One connection carries one request:
//
//	driver                                daemon
//	  {"version":1,"call":"run",…}\n  ->            and 1 to 3 descriptors by
//	                                                SCM_RIGHTS with the first byte
//	  half-close                      ->            cancels (optional)
//	                                  <-  {"outcome":"ok",…}\n
//
// Both sides read at most [MaxMessage] bytes within a fixed time, refuse fields
// they do not know, and close what they did not ask for. Descriptors are, in
// this order: the job log (every call), the payload (prepare and run), the
// script (run). The daemon writes job output straight into the descriptor of
// the log, so no byte of it passes through the driver.
//
// A driver that half-closes its side or dies cancels its request. So does the
// death of the runner, which the driver sees as a hang-up of its output.
package executor

// Version is the program's version. The linker sets it:
// -ldflags "-X hallmark.build/executor.Version=1.2.3".
var Version = "devel"
