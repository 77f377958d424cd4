package egress

import (
	"fmt"
	"net/http"
	"strings"

	"hallmark.build/sandbox/record"
)

// A refusal is told to the client in words.
type refusal struct {
	status               int
	rule, reason, remedy string
}

// maxPhrase bounds the reason in the status line, the only place that some
// clients show.
const maxPhrase = 200

// text is the body of the answer.
func (v refusal) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "hallmark: %s (rule %s)\n", printable(v.reason), v.rule)
	if v.remedy != "" {
		fmt.Fprintf(&b, "hint: %s\n", printable(v.remedy))
	}
	return b.String()
}

// message is the whole answer. bodiless is for HEAD.
func (v refusal) message(bodiless, last bool) string {
	var b strings.Builder
	text := v.text()
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", v.status, clip(printable(v.reason), maxPhrase))
	fmt.Fprintf(&b, "Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n", len(text))
	fmt.Fprintf(&b, "X-Hallmark-Rule: %s\r\nNpm-Notice: %s\r\nCache-Control: no-store\r\n", v.rule, clip(printable(v.reason), maxPhrase))
	if last {
		b.WriteString("Connection: close\r\n")
	}
	b.WriteString("\r\n")
	if !bodiless {
		b.WriteString(text)
	}
	return b.String()
}

// refuse records a refusal and then tells it. What cannot be recorded is
// refused all the same: nothing passed.
func (c *client) refuse(v refusal, b record.Block, bodiless, last bool) {
	b.Rule, b.Reason, b.Remedy = v.rule, v.reason, v.remedy
	if v.rule != ruleRecord {
		_ = c.p.block(b)
	}
	c.tell(v, bodiless, last)
}

// tell answers without recording.
func (c *client) tell(v refusal, bodiless, last bool) {
	if v.status == 0 {
		v.status = http.StatusForbidden
	}
	if c.bw == nil {
		return
	}
	if _, err := c.bw.WriteString(v.message(bodiless, last)); err != nil {
		return
	}
	_ = c.bw.Flush()
}
