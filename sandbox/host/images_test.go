package host

import (
	"testing"

	"hallmark.build/executor"
	"hallmark.build/sandbox/image"
)

// TestPullsQueueByProject: a project with many jobs has no more turns in the queue
// of pulls than one with a single job.
func TestPullsQueueByProject(t *testing.T) {
	customer := func(session, project string) string {
		w := &wish{job: &job{session: session, payload: &executor.Job{Info: executor.JobInfo{ProjectFullPath: project}}}}
		return w.order(image.Image{}).Customer
	}
	if customer("1", "group/one") != customer("2", "group/one") {
		t.Error("two jobs of a project have a turn each")
	}
	if customer("1", "group/one") == customer("2", "group/two") {
		t.Error("two projects share their turns")
	}
}
