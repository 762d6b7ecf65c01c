// Command oip_server stands in for a model server in tests of the router and of the process runtime: it speaks the Open
// Inference Protocol V2 and the part of OpenAI's API that those tests need, and fails on request.
//
// Start faults are flags; faults at run time are set by POST /faults, whose fields change only what they name.
// error_ratio and reset_ratio are met exactly (0.05 is every 20th inference), or, with a seed, by chance.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type faults struct {
	// ErrorRatio of inferences answer 500.
	ErrorRatio float64 `json:"error_ratio"`
	// ResetRatio of inferences get a TCP reset instead of an answer.
	ResetRatio float64 `json:"reset_ratio"`
	// Seed draws each inference's errors and resets by chance, the same for the same seed; 0 leaves nothing to chance.
	Seed uint64 `json:"seed"`
	// DelayMS is waited before an answer starts.
	DelayMS int `json:"delay_ms"`
	// Hang holds inferences until it is false again or the client leaves.
	Hang bool `json:"hang"`
	// Ready is what the health checks say; inference answers all the same, as a draining server's does.
	Ready bool `json:"ready"`
}

func (f faults) check() error {
	if f.ErrorRatio < 0 || f.ErrorRatio > 1 || f.ResetRatio < 0 || f.ResetRatio > 1 {
		return errors.New("error_ratio and reset_ratio are shares from 0 to 1")
	}
	if f.DelayMS < 0 {
		return errors.New("delay_ms must not be negative")
	}
	return nil
}

type server struct {
	model, version string
	accessLog      bool
	loaded         atomic.Bool

	mutex   sync.Mutex
	faults  faults
	changed chan struct{} // closed whenever faults change
	drawn   uint64
	chance  *rand.Rand // of the faults' seed; nil where there is none

	received, served atomic.Int64
	inFlight         atomic.Int64
}

// draw says what the next inference suffers.
func (s *server) draw() (current faults, fail, reset bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	due := func(ratio float64) bool {
		if s.chance != nil {
			return s.chance.Float64() < ratio
		}
		return math.Floor(float64(s.drawn+1)*ratio+1e-9) > math.Floor(float64(s.drawn)*ratio+1e-9)
	}
	fail, reset = due(s.faults.ErrorRatio), due(s.faults.ResetRatio)
	s.drawn++
	return s.faults, fail, reset
}

// suffer makes these the faults, from their first draw on; whoever shares the server holds its mutex.
func (s *server) suffer(wanted faults) {
	s.faults, s.drawn, s.chance = wanted, 0, nil
	if wanted.Seed != 0 {
		s.chance = rand.New(rand.NewPCG(wanted.Seed, 0))
	}
}

func (s *server) current() (faults, <-chan struct{}) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.faults, s.changed
}

func (s *server) ready() bool {
	current, _ := s.current()
	return s.loaded.Load() && current.Ready
}

// inference counts a request, makes it suffer the faults of the moment, and then lets handle answer it.
func (s *server) inference(handle func(http.ResponseWriter, *http.Request) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.received.Add(1)
		s.inFlight.Add(1)
		defer s.inFlight.Add(-1)
		if !s.loaded.Load() {
			s.refuse(w, r, http.StatusServiceUnavailable, "model "+s.model+" is not loaded yet")
			return
		}
		// Only once a body is read to its end does the server notice that the client has left.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		drawn, fail, reset := s.draw()
		for current, changed := s.current(); current.Hang; current, changed = s.current() {
			select {
			case <-changed:
			case <-r.Context().Done():
				return
			}
		}
		if drawn.DelayMS > 0 && !wait(r.Context(), drawn.DelayMS) {
			return
		}
		switch {
		case reset:
			s.reset(w, r)
		case fail:
			s.refuse(w, r, http.StatusInternalServerError, "the failure that error_ratio asks for")
		case handle(w, r):
			s.served.Add(1)
			s.note(r, http.StatusOK)
		}
	}
}

func (s *server) reset(w http.ResponseWriter, r *http.Request) {
	connection, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.refuse(w, r, http.StatusInternalServerError, "can't reset this connection: "+err.Error())
		return
	}
	if tcp, ok := connection.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = connection.Close()
	if s.accessLog {
		log.Printf("%s %s reset", r.Method, r.URL.Path)
	}
}

func (s *server) refuse(w http.ResponseWriter, r *http.Request, status int, message string) {
	answer(w, status, map[string]string{"error": message})
	s.note(r, status)
}

func (s *server) note(r *http.Request, status int) {
	if s.accessLog {
		log.Printf("%s %s %d", r.Method, r.URL.Path, status)
	}
}

func (s *server) infer(w http.ResponseWriter, r *http.Request) bool {
	var request struct {
		ID     string            `json:"id"`
		Inputs []json.RawMessage `json:"inputs"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		s.refuse(w, r, http.StatusBadRequest, "the request's body is no inference request: "+err.Error())
		return false
	}
	answer(w, http.StatusOK, map[string]any{
		"model_name":    s.model,
		"model_version": s.version,
		"id":            request.ID,
		"outputs": []map[string]any{
			{"name": "version", "shape": []int{1}, "datatype": "BYTES", "data": []string{s.version}},
		},
	})
	return true
}

func (s *server) chat(w http.ResponseWriter, r *http.Request) bool {
	request := struct {
		Stream bool `json:"stream"`
		Events int  `json:"events"`
		GapMS  int  `json:"gap_ms"`
	}{Events: 3}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		s.refuse(w, r, http.StatusBadRequest, "the request's body is no chat completion request: "+err.Error())
		return false
	}
	head := func(object string) map[string]any {
		return map[string]any{
			"id": "chatcmpl-" + strconv.FormatInt(s.received.Load(), 10), "object": object,
			"created": time.Now().Unix(), "model": s.model,
		}
	}
	if !request.Stream {
		body := head("chat.completion")
		body["choices"] = []map[string]any{{
			"index": 0, "message": map[string]string{"role": "assistant", "content": s.version}, "finish_reason": "stop",
		}}
		body["usage"] = map[string]int{"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
		answer(w, http.StatusOK, body)
		return true
	}
	done := stream(w, r, request.Events, request.GapMS, func(int) any {
		body := head("chat.completion.chunk")
		body["choices"] = []map[string]any{{"index": 0, "delta": map[string]string{"content": s.version}}}
		return body
	})
	if done {
		fmt.Fprint(w, "data: [DONE]\n\n")
	}
	return done
}

func (s *server) events(w http.ResponseWriter, r *http.Request) bool {
	events, gap := number(r, "events", 3), number(r, "gap_ms", 0)
	if events < 0 || gap < 0 {
		s.refuse(w, r, http.StatusBadRequest, "events and gap_ms are whole numbers from 0")
		return false
	}
	return stream(w, r, events, gap, func(index int) any {
		return map[string]any{"event": index, "version": s.version}
	})
}

// number reads a whole number of the query, -1 where it is none.
func number(r *http.Request, name string, otherwise int) int {
	text := r.URL.Query().Get(name)
	if text == "" {
		return otherwise
	}
	value, err := strconv.Atoi(text)
	if err != nil {
		return -1
	}
	return value
}

// stream sends server-sent events, each flushed at once; false when the client left before the last.
func stream(w http.ResponseWriter, r *http.Request, events, gapMS int, event func(int) any) bool {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w).Flush
	for index := range events {
		if index > 0 && gapMS > 0 && !wait(r.Context(), gapMS) {
			return false
		}
		data, _ := json.Marshal(event(index))
		if _, err := fmt.Fprintf(w, "data: %s\n\n", data); err != nil {
			return false
		}
		if err := flush(); err != nil {
			return false
		}
	}
	return true
}

// wait is false when the client left before the time was over.
func wait(ctx context.Context, milliseconds int) bool {
	select {
	case <-time.After(time.Duration(milliseconds) * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}

func answer(w http.ResponseWriter, status int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(data)
}

func (s *server) setFaults(w http.ResponseWriter, r *http.Request) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	wanted := s.faults
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&wanted)
	if err == nil {
		err = wanted.check()
	}
	if err != nil {
		answer(w, http.StatusBadRequest, map[string]string{"error": "no such faults: " + err.Error()})
		return
	}
	s.suffer(wanted)
	close(s.changed)
	s.changed = make(chan struct{})
	log.Printf("faults are now %+v", wanted)
	answer(w, http.StatusOK, wanted)
}

func echo(w http.ResponseWriter, r *http.Request) {
	headers := map[string]string{"host": r.Host}
	for name, values := range r.Header {
		headers[strings.ToLower(name)] = strings.Join(values, ", ")
	}
	answer(w, http.StatusOK, map[string]any{
		"method": r.Method, "path": r.URL.Path, "query": r.URL.RawQuery, "headers": headers,
	})
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/health/live", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]bool{"live": true})
	})
	readiness := func(w http.ResponseWriter, _ *http.Request) {
		if ready := s.ready(); ready {
			answer(w, http.StatusOK, map[string]bool{"ready": ready})
		} else {
			answer(w, http.StatusServiceUnavailable, map[string]bool{"ready": ready})
		}
	}
	mux.HandleFunc("GET /v2/health/ready", readiness)
	mux.HandleFunc("GET /v2", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"name": "oip_server", "version": "0", "extensions": []string{}})
	})
	metadata := func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{
			"name": s.model, "versions": []string{s.version}, "platform": "stand-in", "inputs": []any{},
			"outputs": []map[string]any{{"name": "version", "shape": []int{1}, "datatype": "BYTES"}},
		})
	}
	for _, model := range []string{"/v2/models/" + s.model, "/v2/models/" + s.model + "/versions/" + s.version} {
		mux.HandleFunc("GET "+model, metadata)
		mux.HandleFunc("GET "+model+"/ready", readiness)
		mux.HandleFunc("POST "+model+"/infer", s.inference(s.infer))
	}
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{
			"object": "list", "data": []map[string]any{{"id": s.model, "object": "model", "owned_by": "stand-in"}},
		})
	})
	mux.HandleFunc("POST /v1/chat/completions", s.inference(s.chat))
	mux.HandleFunc("GET /stream", s.inference(s.events))
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/echo/", echo)
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]int64{
			"served": s.served.Load(), "received": s.received.Load(), "in_flight": s.inFlight.Load(),
		})
	})
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, _ *http.Request) {
		current, _ := s.current()
		answer(w, http.StatusOK, current)
	})
	mux.HandleFunc("POST /faults", s.setFaults)
	return mux
}

func main() {
	host := flag.String("host", "127.0.0.1", "address to listen on")
	port := flag.Int("http-port", 0, "port to listen on; 0 takes a free one, which the listening line names")
	model := flag.String("model", "model", "the served model's name")
	version := flag.String("version", "1.0.0", "the served version, in every answer")
	neverReady := flag.Bool("never-ready", false, "stay live without becoming ready")
	readyAfter := flag.Duration("ready-after", 0, "become ready only after this long")
	exitAfter := flag.Duration("exit-after", 0, "exit with status 1 after this long")
	errorRatio := flag.Float64("error-ratio", 0, "as error_ratio of /faults, from the start")
	seed := flag.Uint64("seed", 0, "as seed of /faults, from the start")
	drain := flag.Duration("drain-timeout", 30*time.Second, "on SIGTERM, wait this long for requests in flight")
	quiet := flag.Bool("quiet", false, "write no line a request")
	flag.Parse()
	log.SetFlags(log.LstdFlags | log.Lmicroseconds)

	s := &server{
		model: *model, version: *version, accessLog: !*quiet,
		changed: make(chan struct{}),
	}
	first := faults{Ready: true, ErrorRatio: *errorRatio, Seed: *seed}
	if err := first.check(); err != nil {
		log.Fatalf("no such faults: %v", err)
	}
	s.suffer(first)
	listener, err := net.Listen("tcp", net.JoinHostPort(*host, strconv.Itoa(*port)))
	if err != nil {
		log.Fatalf("can't listen: %v", err)
	}
	log.Printf("listening on http://%s model=%s version=%s", listener.Addr(), s.model, s.version)

	switch {
	case *neverReady:
		log.Printf("never becoming ready, as --never-ready asks")
	case *readyAfter > 0:
		time.AfterFunc(*readyAfter, func() {
			s.loaded.Store(true)
			log.Printf("ready after %s", *readyAfter)
		})
	default:
		s.loaded.Store(true)
	}
	if *exitAfter > 0 {
		time.AfterFunc(*exitAfter, func() { log.Fatalf("exiting after %s, as --exit-after asks", *exitAfter) })
	}

	httpServer := &http.Server{Handler: s.routes(), ReadHeaderTimeout: time.Minute}
	stopped := make(chan error, 1)
	signals, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals.Done()
		log.Printf("draining %d requests", s.inFlight.Load())
		within, cancel := context.WithTimeout(context.Background(), *drain)
		defer cancel()
		stopped <- httpServer.Shutdown(within)
	}()
	if err := httpServer.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		log.Fatalf("can't serve: %v", err)
	}
	if err := <-stopped; err != nil {
		log.Fatalf("gave up draining with %d requests in flight: %v", s.inFlight.Load(), err)
	}
	log.Print("drained")
}
