package attest_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/sandbox/record"
)

// everything uses every external parameter.
func everything() []attesttest.Event {
	value, yes := "v", true
	o := attesttest.Opened()
	variable := record.Variable{Name: "V", Value: &value, Commitment: attesttest.SHA256("c"), Public: true, Masked: true, File: true, Raw: true}
	image := record.ImageParameter{
		Name: "n", Alias: "a", Entrypoint: []string{"e"}, Command: []string{"c"}, User: "u", Platform: "p",
		PullPolicy: []string{"always"}, Variables: []record.Variable{variable},
	}
	step := record.Step{Name: "script", Digest: attesttest.SHA256("s"), When: "always", AllowFailure: true, TimeoutSec: 1}
	o.Job.Protected = &yes
	o.External = record.External{
		Source: o.External.Source, Ref: o.External.Ref, Project: o.External.Project, JobName: o.External.JobName,
		JobStage: o.External.JobStage, PipelineSource: "push", Profile: o.External.Profile,
		Image: &image, Services: []record.ImageParameter{image}, Variables: []record.Variable{variable},
		Steps: []record.Step{step}, Hooks: []record.Step{step},
		Artifacts: []record.ArtifactRule{{
			Name: "n", Type: "archive", Format: "zip", Paths: []string{"p"}, Exclude: []string{"x"}, Untracked: true, When: "always", ExpireIn: "1 day",
		}},
		Caches: []record.CacheRule{{
			Key: "k", Policy: "pull", Paths: []string{"p"}, Untracked: true, When: "always", FallbackKeys: []string{"f"},
		}},
		Dependencies: []record.DependencyChoice{{ID: 1, Name: "n"}},
		Secrets:      []string{"S"}, RunDigest: attesttest.SHA256("r"),
	}
	return attesttest.JobOf(o)
}

func schema(t *testing.T) map[string]any {
	t.Helper()
	text, err := os.ReadFile("buildtype.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := record.CheckJSON(text); err != nil {
		t.Fatal(err)
	}
	return decoded(t, text)
}

// TestExample holds that the example is what the code writes.
func TestExample(t *testing.T) {
	var b bytes.Buffer
	if err := json.Indent(&b, statements(t, attesttest.Job())[0].JSON, "", "  "); err != nil {
		t.Fatal(err)
	}
	b.WriteByte('\n')
	const file = "buildtype.example.json"
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestSchema(t *testing.T) {
	root := schema(t)
	many := uploads(attesttest.Upload("a.zip", "archive", manyPaths(1500)...))
	for name, events := range map[string][]attesttest.Event{
		"job": attesttest.Job(), "firewalled": attesttest.Dependencies(3), "mismatch": mismatch(), "failed": failed(),
		"everything": everything(), "parts": many,
	} {
		for _, st := range statements(t, events) {
			for _, problem := range validate(root, root, decoded(t, st.JSON)["predicate"], "predicate") {
				t.Errorf("%s: %s", name, problem)
			}
		}
	}
}

func manyPaths(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("dist/%d", i)
	}
	return out
}

// TestSchemaRefuses shows that the validator of this test is awake.
func TestSchemaRefuses(t *testing.T) {
	root := schema(t)
	for name, change := range map[string]func(map[string]any){
		"unknown name":     func(p map[string]any) { p["x"] = 1 },
		"missing":          func(p map[string]any) { delete(p, "hallmark_result") },
		"unknown external": func(p map[string]any) { at(t, p, "buildDefinition.externalParameters").(map[string]any)["x"] = 1 },
		"wrong word":       func(p map[string]any) { at(t, p, "hallmark_completeness").(map[string]any)["files"] = "complete" },
		"wrong type":       func(p map[string]any) { at(t, p, "hallmark_result").(map[string]any)["exitCode"] = "0" },
		"wrong form":       func(p map[string]any) { at(t, p, "runDetails.metadata").(map[string]any)["startedOn"] = "yesterday" },
		"wrong item": func(p map[string]any) {
			at(t, p, "buildDefinition.externalParameters").(map[string]any)["secrets"] = []any{1.0}
		},
	} {
		p := one(t, attesttest.Job())["predicate"].(map[string]any)
		change(p)
		if len(validate(root, root, p, "predicate")) == 0 {
			t.Errorf("%s: valid", name)
		}
	}
}

// validate checks a value against the part of JSON Schema that we use, and
// complains about any other part.
func validate(root, s map[string]any, v any, path string) []string {
	var out []string
	if ref, ok := s["$ref"].(string); ok {
		def := root["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")]
		if def == nil {
			return []string{path + ": no definition " + ref}
		}
		return validate(root, def.(map[string]any), v, path)
	}
	for word := range s {
		if !slices.Contains([]string{"$schema", "$id", "$defs", "title", "type", "required", "additionalProperties", "properties", "items", "enum", "pattern"}, word) {
			out = append(out, path+": the schema uses "+word)
		}
	}
	if have := typeOf(v); have != s["type"] {
		return append(out, fmt.Sprintf("%s: is %s, want %v", path, have, s["type"]))
	}
	switch x := v.(type) {
	case map[string]any:
		out = append(out, validateObject(root, s, x, path)...)
	case []any:
		for i, item := range x {
			out = append(out, validate(root, s["items"].(map[string]any), item, fmt.Sprintf("%s[%d]", path, i))...)
		}
	case string:
		if enum, ok := s["enum"].([]any); ok && !slices.Contains(enum, any(x)) {
			out = append(out, fmt.Sprintf("%s: %q is not among %v", path, x, enum))
		}
		if p, ok := s["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(x) {
			out = append(out, fmt.Sprintf("%s: %q does not match %s", path, x, p))
		}
	}
	return out
}

func validateObject(root, s, x map[string]any, path string) []string {
	var out []string
	required, _ := s["required"].([]any)
	for _, name := range required {
		if _, ok := x[name.(string)]; !ok {
			out = append(out, fmt.Sprintf("%s.%s: missing", path, name))
		}
	}
	properties, _ := s["properties"].(map[string]any)
	for name, member := range x {
		switch p := properties[name].(type) {
		case map[string]any:
			out = append(out, validate(root, p, member, path+"."+name)...)
		default:
			switch more := s["additionalProperties"].(type) {
			case bool:
				out = append(out, path+"."+name+": unknown")
			case map[string]any:
				out = append(out, validate(root, more, member, path+"."+name)...)
			}
		}
	}
	return out
}

func typeOf(v any) string {
	switch x := v.(type) {
	case map[string]any:
		return "object"
	case []any:
		return "array"
	case string:
		return "string"
	case bool:
		return "boolean"
	case float64:
		if x == float64(int64(x)) {
			return "integer"
		}
		return "number"
	}
	return "null"
}

// TestSchemaKnowsAllParameters compares the schema's names with those that the
// code can write.
func TestSchemaKnowsAllParameters(t *testing.T) {
	defs := schema(t)["$defs"].(map[string]any)
	for def, v := range map[string]any{
		"externalParameters": record.External{}, "image": record.ImageParameter{}, "variable": record.Variable{},
		"step": record.Step{}, "artifact": record.ArtifactRule{}, "cache": record.CacheRule{}, "dependency": record.DependencyChoice{},
	} {
		have := slices.Sorted(maps.Keys(at(t, defs, def+".properties").(map[string]any)))
		if diff := cmp.Diff(jsonNames(v), have); diff != "" {
			t.Errorf("%s (-code +schema): %s", def, diff)
		}
	}
}

func jsonNames(v any) []string {
	var out []string
	for f := range reflect.TypeOf(v).Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// TestDocumentNamesAll looks for each name of the schema in the document.
func TestDocumentNamesAll(t *testing.T) {
	text, err := os.ReadFile("buildtype.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(text), "# Build type `"+attest.BuildType+"`\n") {
		t.Error("the document is of another build type")
	}
	var walk func(v any)
	walk = func(v any) {
		m, ok := v.(map[string]any)
		if !ok {
			return
		}
		if properties, ok := m["properties"].(map[string]any); ok {
			for name := range properties {
				if !bytes.Contains(text, []byte("`"+name+"`")) && !standard(name) {
					t.Errorf("`%s` is not in the document", name)
				}
			}
		}
		for _, member := range m {
			walk(member)
		}
	}
	walk(schema(t))
}

// standard reports whether SLSA or in-toto describe a name.
func standard(name string) bool {
	return slices.Contains([]string{
		"buildDefinition", "buildType", "builder", "id", "version", "metadata", "invocationId", "startedOn", "finishedOn",
		"uri", "digest", "downloadLocation", "mediaType", "annotations",
	}, name)
}
