// Renders the templates of a chart as Helm does, as far as text/template goes: its arguments are
// their files, standard input the values in JSON.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"text/template"
)

func main() {
	var values map[string]any
	if err := json.NewDecoder(os.Stdin).Decode(&values); err != nil {
		panic(err)
	}
	for _, path := range os.Args[1:] {
		parsed := template.Must(template.ParseFiles(path)).Option("missingkey=error")
		fmt.Println("---")
		if err := parsed.Execute(os.Stdout, map[string]any{"Values": values}); err != nil {
			panic(err)
		}
	}
}
