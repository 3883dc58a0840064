package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

const url = "http://127.0.0.1:5000/v1/messages"

type message struct{ ID, Status, Why string }

func ask(method, url, body string, headers map[string]string) (told message) {
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("MAILASYNC_API_KEY"))
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	answer, err := (&http.Client{Timeout: time.Minute}).Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode >= 400 || json.Unmarshal(text, &told) != nil {
		log.Fatal(answer.Status, " ", string(text), " ", err)
	}
	return told
}

func main() {
	mail, err := json.Marshal(map[string]any{"to": "you@example.org", "subject": "Order 4711", "contents": "It is on its way."})
	if err != nil {
		log.Fatal(err)
	}
	id := ask("POST", url, string(mail), map[string]string{"Content-Type": "application/json", "Idempotency-Key": "order-4711"}).ID
	told := ask("GET", url+"/"+id, "", map[string]string{"Prefer": "wait=30"})
	fmt.Println(id, told.Status, told.Why)
}
