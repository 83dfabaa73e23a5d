from benchmarks.figures.command import main

raise SystemExit(main())
