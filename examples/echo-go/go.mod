module echo-go

go 1.21
