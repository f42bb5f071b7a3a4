// Client calls the backend once a second, and says what it received.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

const (
	interval = time.Second
	timeout  = 5 * time.Second
)

// call makes one request and returns what the client has to say about it.
func call(client *http.Client, url string) string {
	response, err := client.Get(url)
	if err != nil {
		return fmt.Sprintf("Client failed: %v", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Sprintf("Client failed: %v", err)
	}
	return fmt.Sprintf("Client received: %s", body)
}

func main() {
	log.SetFlags(0)
	address := os.Getenv("BACKEND_ADDR")
	if address == "" {
		log.Fatal("BACKEND_ADDR is not set: start me with meshrun up")
	}
	client := &http.Client{Timeout: timeout}
	for {
		fmt.Println(call(client, "http://"+address+"/"))
		time.Sleep(interval)
	}
}
