// Server answers every request with a greeting and the port that it listens on.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
)

func main() {
	log.SetFlags(0)
	port := os.Getenv("PORT")
	if port == "" {
		log.Fatal("PORT is not set: start me with meshrun up")
	}
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "ok")
	})
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "Hello from echo-server on port %s!", port)
	})
	log.Printf("listening on port %s", port)
	// Only on the loopback address: callers come through the sidecar.
	log.Fatal(http.ListenAndServe("127.0.0.1:"+port, nil))
}
