package world

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Docker is the token of the registration with the docker executor: what
// Hallmark is compared with.
const Docker = "glrt-dockerexecutor0123"

const (
	dockerSocket = "/run/docker/docker.sock"
	dockerRoot   = "/var/lib/hallmark-docker"
	// dockerNet is the network of its bridge. No packet filter is asked for: the
	// internet knows the way back, so that no address need be rewritten.
	dockerNet = "172.30.0.0/16"
	dockerBIP = "172.30.0.1/16"
)

// fetchDocker unpacks Docker Engine where it is missing.
func fetchDocker(root string) error {
	out, err := exec.Command(filepath.Join(root, "integration", "setup", "docker.sh"), filepath.Join(root, ".cache", "docker")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker.sh: %w\n%s", err, out)
	}
	return nil
}

// addDocker makes a Docker Engine with everything it has in places of its own,
// and a runner whose executor is docker.
func (w *World) addDocker(wanted bool) error {
	if !wanted {
		return nil
	}
	if err := bindDisk(dockerRoot, filepath.Join(w.scratch, "docker"), 0o711, 0); err != nil {
		return err
	}
	if err := makeDir(filepath.Dir(dockerSocket), 0o755, 0); err != nil {
		return err
	}
	if err := w.internet.routeBack(dockerNet); err != nil {
		return fmt.Errorf("route to %s: %w", dockerNet, err)
	}
	engine := filepath.Join(w.Root, ".cache", "docker")
	libs, err := filepath.Glob(filepath.Join(engine, "*", "*-linux-gnu*"))
	if err != nil {
		return err
	}
	more, err := filepath.Glob(filepath.Join(engine, "usr", "lib", "*-linux-gnu*"))
	if err != nil {
		return err
	}
	w.Dockerd = &Daemon{
		Name: "dockerd", log: filepath.Join(w.logs, "dockerd.log"),
		Args: []string{filepath.Join(engine, "usr", "sbin", "dockerd"),
			"--config-file", "/run/docker/daemon.json", "--data-root", dockerRoot, "--exec-root", "/run/docker/exec",
			"--pidfile", "/run/docker/pid", "--host", "unix://" + dockerSocket, "--group", fmt.Sprint(RunnerUID),
			"--bip", dockerBIP, "--iptables=false", "--ip6tables=false", "--userland-proxy=false",
			"--insecure-registry", RegistryName + ":5000",
		},
		Env: []string{
			"PATH=" + engine + "/usr/sbin:" + engine + "/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"LD_LIBRARY_PATH=" + strings.Join(append(libs, more...), ":"),
		},
		ready: dialable("unix", dockerSocket),
	}
	if err := os.WriteFile("/run/docker/daemon.json", []byte("{}\n"), 0o644); err != nil {
		return err
	}
	return w.addDockerRunner()
}

// addDockerRunner registers the docker executor as its documentation has it;
// what differs from its defaults is how it finds the helper image and GitLab.
func (w *World) addDockerRunner() error {
	config, err := os.OpenFile(RunnerFile, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer config.Close()
	var hosts []string
	for _, s := range servers {
		hosts = append(hosts, fmt.Sprintf("%q", s.name+":"+s.addr))
	}
	_, err = fmt.Fprintf(config, `
[[runners]]
  name = "docker"
  id = 7
  url = "https://%s"
  token = %q
  tls-ca-file = %q
  executor = "docker"
  [runners.docker]
    host = "unix://%s"
    image = %q
    helper_image = %q
    extra_hosts = [%s]
    volumes = ["/cache"]
`, GitLabName, Docker, caFile, dockerSocket, w.Images["shell"], w.Images["docker-helper"], strings.Join(hosts, ", "))
	if err != nil {
		return err
	}
	return config.Close()
}

// ForgetDockerImage removes an image from the Docker Engine, if it has it.
func ForgetDockerImage(ctx context.Context, image string) error {
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", dockerSocket)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, "http://docker/images/"+url.PathEscape(image)+"?force=1", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNotFound {
		var text bytes.Buffer
		_, _ = text.ReadFrom(resp.Body)
		return fmt.Errorf("docker: remove image %s: %s %s", image, resp.Status, text.Bytes())
	}
	return nil
}
