// What the Go code of docs/GUIDE.md is built with: scripts/setup builds it once, so that the test needs no network.
package main

import (
	_ "database/sql"
	_ "encoding/json"
	_ "log"

	_ "github.com/mattn/go-sqlite3"
)

func main() {}
