// Command inside tries things from inside a container, whose image holds nothing else that could: each command exits 0
// where it could do what it was asked to.
//
//	inside connect HOST:PORT   opens a TCP connection
//	inside allocate MIB        takes so much memory, and writes to all of it
//	inside spin SECONDS        keeps as many cores busy as it gets
//	inside read FILE           prints a file
//	inside write FILE          writes a file
//	inside kill NAME           ends the processes of that name by SIGKILL
package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: inside COMMAND ARGUMENT")
		os.Exit(2)
	}
	if err := try(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func try(command, argument string) error {
	switch command {
	case "connect":
		connection, err := net.DialTimeout("tcp", argument, 2*time.Second)
		if err == nil {
			err = connection.Close()
		}
		return err
	case "allocate":
		return allocate(argument)
	case "spin":
		return spin(argument)
	case "read":
		content, err := os.ReadFile(argument)
		fmt.Print(string(content))
		return err
	case "write":
		return os.WriteFile(argument, []byte("written\n"), 0o644)
	case "kill":
		return kill(argument)
	}
	return fmt.Errorf("no such command: %s", command)
}

func allocate(mebibytes string) error {
	count, err := strconv.Atoi(mebibytes)
	if err != nil {
		return err
	}
	memory := make([]byte, count<<20)
	for index := 0; index < len(memory); index += os.Getpagesize() {
		memory[index] = 1
	}
	runtime.KeepAlive(memory)
	return nil
}

func spin(seconds string) error {
	count, err := strconv.Atoi(seconds)
	if err != nil {
		return err
	}
	for range make([]struct{}, runtime.NumCPU()) {
		go func() {
			for {
			}
		}()
	}
	time.Sleep(time.Duration(count) * time.Second)
	return nil
}

func kill(name string) error {
	files, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	found := false
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(content)) != name {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		found = true
	}
	if !found {
		return fmt.Errorf("no process is named %s", name)
	}
	return nil
}
