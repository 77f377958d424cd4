package trace

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const at = "2026-11-26T12:00:00.000000Z 00O "

func lines(l ...string) string { return strings.Join(l, "\n") + "\n" }

var example = lines(
	at+"\x1b[0KRunning with gitlab-runner\x1b[0;m",
	at+"section_start:100:prepare\r\x1b[0K\x1b[0K\x1b[36;1mPreparing\x1b[0;m",
	at+"using ",
	"2026-11-26T12:00:00.000000Z 00O+hallmark",
	at+"section_start:101:inner[collapsed=true]\r\x1b[0KDetails",
	at+"one",
	at+"two",
	at+"section_end:102:inner\r\x1b[0K",
	at+"section_end:165:prepare\r\x1b[0Ksection_start:165:empty\r\x1b[0KNothing here",
	at+"section_end:165:empty\r\x1b[0K",
	at+"\x1b[32;1mJob succeeded\x1b[0;m",
)

func TestRender(t *testing.T) {
	var b bytes.Buffer
	if err := Render(&b, example, "", false); err != nil {
		t.Fatal(err)
	}
	pad := func(s, took string) string { return s + strings.Repeat(" ", Width-len(s)-len(took)) + took }
	want := lines(
		"Running with gitlab-runner",
		pad("v Preparing", "01:05"),
		"  using hallmark",
		pad("  > Details (2 lines)", "00:01"),
		pad("v Nothing here", "00:00"),
		"Job succeeded",
	)
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestPlain(t *testing.T) {
	want := "Running with gitlab-runner\nPreparing\nusing hallmark\nDetails\none\ntwo\n\nNothing here\n\nJob succeeded"
	if diff := cmp.Diff(want, Plain(example)); diff != "" {
		t.Error(diff)
	}
}

func TestParseOfHostileLogs(t *testing.T) {
	for name, log := range map[string]string{
		"end without start": "section_end:1:x\r\x1b[0Ktext",
		"start without end": "section_start:1:x\r\x1b[0Kheader\ntext",
		"crossed":           "section_start:1:a\r\x1b[0Ka\nsection_start:1:b\r\x1b[0Kb\nsection_end:2:a\r\x1b[0K\nsection_end:2:b\r\x1b[0K",
		"huge number":       "section_start:99999999999999999999999:a\r\x1b[0Ka",
		"no header":         "section_start:1:a\r\x1b[0K",
		"empty":             "",
	} {
		var b bytes.Buffer
		if err := Render(&b, log, "", true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(b.String(), "section_") {
			t.Errorf("%s: a mark is shown: %q", name, b.String())
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(example)
	f.Add("section_start:1:x\r\x1b[0K")
	f.Fuzz(func(t *testing.T, log string) {
		var b bytes.Buffer
		if err := Render(&b, log, "", false); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(b.String(), "\x1b[1m") {
			t.Error("an escape passed without colour")
		}
	})
}
