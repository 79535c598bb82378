/* A column with cells under nulls, from stdin: the bytes of each row, attached without a name. */
#include "iovcache.h"

#include <stdio.h>
#include <stdlib.h>

#define ROWS 64

int main(int count, char **arguments)
{
  static iovc_meta_header_t cells[ROWS];
  const void *data[ROWS];
  size_t sizes[ROWS];
  iovc_attach_t *attach = NULL;
  if (count != 2 || iovc_attach(arguments[1], NULL, NULL, &attach) != IOVC_OK) {
    fprintf(stderr, "attach: %s\n", iovc_last_error());
    return 1;
  }
  const size_t rows = fread(cells, sizeof cells[0], ROWS, stdin);
  if (iovc_resolve_many(attach, cells, rows, data, sizes) != IOVC_OK) {
    fprintf(stderr, "resolve: %s\n", iovc_last_error());
    return 1;
  }
  for (size_t row = 0; row < rows; row++) {
    if (data[row] == NULL && sizes[row] == 0) {
      puts("-");
    } else {
      printf("%.*s\n", (int)sizes[row], (const char *)data[row]);
    }
  }
  iovc_detach(attach);
  return 0;
}
